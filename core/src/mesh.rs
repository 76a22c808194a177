//! The state of the mesh and the one way to change it: [`Mesh::apply`]. The controller and the proxies run
//! the same reducer. Cloning is O(1) (persistent maps), so readers keep snapshots.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Authorization, PolicyKey, Scope, Service, ServiceKey, Workload, WorkloadUid};
use crate::route::ServiceRoutes;

/// A change of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds or replaces a workload.
    PutWorkload(Arc<Workload>),
    /// Removes a workload.
    RemoveWorkload(WorkloadUid),
    /// Adds or replaces a service.
    PutService(Arc<Service>),
    /// Removes a service.
    RemoveService(ServiceKey),
    /// Adds or replaces a policy.
    PutPolicy(Arc<Authorization>),
    /// Removes a policy.
    RemovePolicy(PolicyKey),
    /// Adds or replaces the routes of a service.
    PutRoutes(Arc<ServiceRoutes>),
    /// Removes the routes of a service.
    RemoveRoutes(ServiceKey),
}

/// What a batch of changes touched. A change to an equal value touches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Workloads that were added, replaced or removed.
    pub workloads: BTreeSet<WorkloadUid>,
    /// Services that were added, replaced or removed.
    pub services: BTreeSet<ServiceKey>,
    /// Policies that were added, replaced or removed.
    pub policies: BTreeSet<PolicyKey>,
    /// Services whose routes were added, replaced or removed.
    pub routes: BTreeSet<ServiceKey>,
    /// Addresses whose owner, or of which what is captured, may have changed.
    pub addresses: BTreeSet<IpAddr>,
}

impl Touched {
    /// Adds what another batch touched.
    pub fn extend(&mut self, other: Self) {
        let Self { workloads, services, policies, routes, addresses } = other;
        self.workloads.extend(workloads);
        self.services.extend(services);
        self.policies.extend(policies);
        self.routes.extend(routes);
        self.addresses.extend(addresses);
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty()
            && self.services.is_empty()
            && self.policies.is_empty()
            && self.routes.is_empty()
            && self.addresses.is_empty()
    }
}

type Index<K, V> = imbl::HashMap<K, imbl::OrdSet<V>>;

/// The state: workloads, services, policies, routes, and the indexes that decisions need.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mesh {
    workloads: imbl::OrdMap<WorkloadUid, Arc<Workload>>,
    services: imbl::OrdMap<ServiceKey, Arc<Service>>,
    policies: imbl::OrdMap<PolicyKey, Arc<Authorization>>,
    routes: imbl::OrdMap<ServiceKey, Arc<ServiceRoutes>>,
    workloads_by_address: Index<IpAddr, WorkloadUid>,
    /// The pods that share their node's addresses.
    nodes_by_address: Index<IpAddr, WorkloadUid>,
    services_by_address: Index<IpAddr, ServiceKey>,
    endpoints: imbl::HashMap<ServiceKey, imbl::OrdMap<WorkloadUid, Arc<Workload>>>,
    workloads_by_node: Index<Arc<str>, WorkloadUid>,
    global_policies: imbl::OrdSet<PolicyKey>,
    namespace_policies: Index<Arc<str>, PolicyKey>,
    /// The workloads that name a policy.
    naming: Index<PolicyKey, WorkloadUid>,
    /// Policies that were removed while workloads still name them.
    retracted: imbl::OrdSet<PolicyKey>,
}

impl Mesh {
    /// Without resources.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies the changes in order and returns what they touched.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Touched {
        let mut touched = Touched::default();
        for change in changes {
            match change {
                Change::PutWorkload(workload) => {
                    self.set_workload(&workload.uid.clone(), Some(workload), &mut touched);
                }
                Change::RemoveWorkload(uid) => self.set_workload(&uid, None, &mut touched),
                Change::PutService(service) => {
                    self.set_service(&service.key.clone(), Some(service), &mut touched);
                }
                Change::RemoveService(key) => self.set_service(&key, None, &mut touched),
                Change::PutPolicy(policy) => self.set_policy(&policy.key.clone(), Some(policy), &mut touched),
                Change::RemovePolicy(key) => self.set_policy(&key, None, &mut touched),
                Change::PutRoutes(routes) => {
                    self.set_routes(&routes.service().clone(), Some(routes), &mut touched);
                }
                Change::RemoveRoutes(key) => self.set_routes(&key, None, &mut touched),
            }
        }
        touched
    }

    /// The workload of that name.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// Every workload that has the address, ordered by uid.
    pub fn workloads_by_address(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Workload>> {
        let uids = self.workloads_by_address.get(&address.to_canonical()).into_iter().flatten();
        uids.filter_map(|uid| self.workloads.get(uid))
    }

    /// The workload that has the address, for reports: for decisions see [`crate::ownership`]. Of several: a
    /// pod, then an enrolled one, then the first by uid, so that the order of changes does not matter.
    pub fn workload_by_address(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        let rank = |workload: &&Arc<Workload>| (!workload.origin.is_kubernetes(), !workload.in_mesh());
        self.workloads_by_address(address).min_by_key(rank)
    }

    /// A pod that has the address in common with its node; `None` where it is no node's address.
    pub fn node_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        let mut uids = self.nodes_by_address.get(&address.to_canonical()).into_iter().flatten();
        uids.find_map(|uid| self.workloads.get(uid))
    }

    /// The service of that name.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// Every service that has the address, ordered by key.
    pub fn services_by_address(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        let keys = self.services_by_address.get(&address.to_canonical()).into_iter().flatten();
        keys.filter_map(|key| self.services.get(key))
    }

    /// The endpoints of a service, ready or not, ordered by uid.
    pub fn endpoints(&self, key: &ServiceKey) -> impl Iterator<Item = &Arc<Workload>> {
        self.endpoints.get(key).into_iter().flat_map(|endpoints| endpoints.values())
    }

    /// The policy of that name.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Authorization>> {
        self.policies.get(key)
    }

    /// The routes of a service, whether or not the service is known; `None` where it has none.
    pub fn routes(&self, key: &ServiceKey) -> Option<&Arc<ServiceRoutes>> {
        self.routes.get(key)
    }

    /// The routes of all services, ordered by key.
    pub fn all_routes(&self) -> impl Iterator<Item = &Arc<ServiceRoutes>> {
        self.routes.values()
    }

    /// The policies that apply to a workload: the mesh's, its namespace's, and those it names.
    pub fn policies_for(&self, workload: &Workload) -> Vec<&Arc<Authorization>> {
        let namespace = self.namespace_policies.get(&workload.namespace).into_iter().flatten();
        let scoped = self.global_policies.iter().chain(namespace).filter_map(|key| self.policies.get(key));
        let listed = workload.policies.iter().filter_map(|key| self.policies.get(key));
        scoped.chain(listed.filter(|policy| policy.scope == Scope::WorkloadSelector)).collect()
    }

    /// A policy that the workload names and that was never put: it has not arrived, or could not be decoded.
    /// A removed one is not missing: the removal and the workload's update are separate messages and may
    /// arrive in either order.
    pub fn missing_policy<'a>(&self, workload: &'a Workload) -> Option<&'a PolicyKey> {
        workload
            .policies
            .iter()
            .find(|key| !self.policies.contains_key(*key) && !self.retracted.contains(*key))
    }

    /// All workloads, ordered by uid.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, ordered by key.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies, ordered by key.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Authorization>> {
        self.policies.values()
    }

    /// The workloads that run on a node, ordered by uid.
    pub fn workloads_on_node(&self, node: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let uids = self.workloads_by_node.get(node).into_iter().flatten();
        uids.filter_map(|uid| self.workloads.get(uid))
    }

    fn set_workload(&mut self, uid: &WorkloadUid, new: Option<Arc<Workload>>, touched: &mut Touched) {
        let old = self.workloads.get(uid).cloned();
        if old == new {
            return;
        }
        if let Some(old) = &old {
            for address in indexed_addresses(old) {
                unindex(&mut self.workloads_by_address, &address, uid);
            }
            for address in node_addresses(old) {
                unindex(&mut self.nodes_by_address, &address, uid);
            }
            for key in old.services.keys() {
                if let Some(endpoints) = self.endpoints.get_mut(key) {
                    endpoints.remove(uid);
                    if endpoints.is_empty() {
                        self.endpoints.remove(key);
                    }
                }
            }
            for key in &old.policies {
                unindex(&mut self.naming, key, uid);
            }
            unindex(&mut self.workloads_by_node, &old.node, uid);
        }
        for workload in old.iter().chain(&new) {
            touched.addresses.extend(indexed_addresses(workload).chain(node_addresses(workload)));
            // An endpoint that joins, leaves or changes its protocol may change whether its services'
            // addresses are captured.
            for service in workload.services.keys().filter_map(|key| self.services.get(key)) {
                touched.addresses.extend(service.addresses.iter().map(IpAddr::to_canonical));
            }
        }
        match new {
            Some(new) => {
                for address in indexed_addresses(&new) {
                    self.workloads_by_address.entry(address).or_default().insert(uid.clone());
                }
                for address in node_addresses(&new) {
                    self.nodes_by_address.entry(address).or_default().insert(uid.clone());
                }
                for key in new.services.keys() {
                    self.endpoints.entry(key.clone()).or_default().insert(uid.clone(), new.clone());
                }
                for key in &new.policies {
                    self.naming.entry(key.clone()).or_default().insert(uid.clone());
                }
                self.workloads_by_node.entry(new.node.clone()).or_default().insert(uid.clone());
                self.workloads.insert(uid.clone(), new);
            }
            None => {
                self.workloads.remove(uid);
            }
        }
        for key in old.iter().flat_map(|old| &old.policies) {
            if !self.naming.contains_key(key) {
                self.retracted.remove(key);
            }
        }
        touched.workloads.insert(uid.clone());
    }

    fn set_service(&mut self, key: &ServiceKey, new: Option<Arc<Service>>, touched: &mut Touched) {
        let old = self.services.get(key).cloned();
        if old == new {
            return;
        }
        if let Some(old) = &old {
            for address in &old.addresses {
                unindex(&mut self.services_by_address, &address.to_canonical(), key);
                touched.addresses.insert(address.to_canonical());
            }
        }
        match new {
            Some(new) => {
                for address in &new.addresses {
                    self.services_by_address.entry(address.to_canonical()).or_default().insert(key.clone());
                    touched.addresses.insert(address.to_canonical());
                }
                self.services.insert(key.clone(), new);
            }
            None => {
                self.services.remove(key);
            }
        }
        touched.services.insert(key.clone());
    }

    fn set_routes(&mut self, key: &ServiceKey, new: Option<Arc<ServiceRoutes>>, touched: &mut Touched) {
        if self.routes.get(key) == new.as_ref() {
            return;
        }
        match new {
            Some(new) => drop(self.routes.insert(key.clone(), new)),
            None => drop(self.routes.remove(key)),
        }
        touched.routes.insert(key.clone());
    }

    fn set_policy(&mut self, key: &PolicyKey, new: Option<Arc<Authorization>>, touched: &mut Touched) {
        let old = self.policies.get(key).cloned();
        let retracts = new.is_none() && self.naming.contains_key(key) && !self.retracted.contains(key);
        if old == new && !retracts {
            return;
        }
        if retracts {
            self.retracted.insert(key.clone());
        } else {
            self.retracted.remove(key);
        }
        match old.map(|policy| policy.scope) {
            Some(Scope::Global) => {
                self.global_policies.remove(key);
            }
            Some(Scope::Namespace) => unindex(&mut self.namespace_policies, &key.namespace, key),
            Some(Scope::WorkloadSelector) | None => {}
        }
        match new {
            Some(new) => {
                match new.scope {
                    Scope::Global => {
                        self.global_policies.insert(key.clone());
                    }
                    Scope::Namespace => {
                        self.namespace_policies.entry(key.namespace.clone()).or_default().insert(key.clone());
                    }
                    Scope::WorkloadSelector => {}
                }
                self.policies.insert(key.clone(), new);
            }
            None => {
                self.policies.remove(key);
            }
        }
        touched.policies.insert(key.clone());
    }
}

/// The addresses that a workload is found by: none if it shares its node's.
fn indexed_addresses(workload: &Workload) -> impl Iterator<Item = IpAddr> {
    let own = workload.has_own_address();
    workload.addresses.iter().filter(move |_| own).map(IpAddr::to_canonical)
}

/// The addresses of the node that a pod shares.
fn node_addresses(workload: &Workload) -> impl Iterator<Item = IpAddr> {
    let shared = !workload.has_own_address() && workload.origin.is_kubernetes();
    workload.addresses.iter().filter(move |_| shared).map(IpAddr::to_canonical)
}

fn unindex<K, V>(index: &mut Index<K, V>, key: &K, value: &V)
where
    K: Clone + Eq + std::hash::Hash,
    V: Clone + Ord,
{
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}
