//! The objects and what is derived from them: [`World`].

mod gateway_api;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::condition::Condition;
use super::context::{self, Context};
use super::dirty::Dirty;
use super::object::{Kind, Object, ObjectEvent, ObjectKey};
use super::report::Report;
use super::routes::Compiled;
use super::settings::Settings;
use super::standing::Standing;
use super::steps::{Replaced, Steps, replace};
use super::store::Store;
use super::{authorization, endpoint_slice, peer_authentication, service_entry, waypoint, workload};
use crate::mesh::{Change, Mesh, Touched};
use crate::model::{self, Authorization, PolicyKey, ServiceKey, WorkloadUid};
use crate::route::ServiceRoutes;

/// What a batch of events changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Derived {
    /// In an order that is safe to apply and publish one by one: policies are put before the workloads that
    /// name them, and removed after them.
    pub changes: Vec<Change>,
    /// What the changes touched of [`World::mesh`].
    pub touched: Touched,
    /// All conditions of every object whose conditions changed: not only of the events' objects.
    pub conditions: Vec<Condition>,
    /// What the statuses of Gateway API's objects say, where that changed.
    pub standings: Vec<(ObjectKey, Standing)>,
}

/// The objects and what is derived from them.
#[derive(Clone, Debug)]
pub struct World {
    settings: Settings,
    store: Store,
    workloads: BTreeMap<WorkloadUid, Arc<model::Workload>>,
    /// The workloads of inline endpoints, by the service entry or endpoint slice that lists them.
    endpoints: BTreeMap<ObjectKey, BTreeSet<WorkloadUid>>,
    services: BTreeMap<ServiceKey, Arc<model::Service>>,
    policies: BTreeMap<PolicyKey, Arc<Authorization>>,
    conditions: BTreeMap<ObjectKey, Vec<Condition>>,
    compiled: BTreeMap<ObjectKey, Compiled>,
    routes: BTreeMap<ServiceKey, Arc<ServiceRoutes>>,
    standings: BTreeMap<ObjectKey, Standing>,
    mesh: Mesh,
}

impl World {
    /// Without objects.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            store: Store::default(),
            workloads: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            services: BTreeMap::new(),
            policies: BTreeMap::new(),
            conditions: BTreeMap::new(),
            compiled: BTreeMap::new(),
            routes: BTreeMap::new(),
            standings: BTreeMap::new(),
            mesh: Mesh::new(),
        }
    }

    /// The mesh that is derived from the objects.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The settings that objects are derived with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The current conditions of all objects.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.conditions.values().flatten()
    }

    /// The current standings of Gateway API's objects.
    pub fn standings(&self) -> &BTreeMap<ObjectKey, Standing> {
        &self.standings
    }

    /// Applies events and returns what they change. Only what the events can have touched is derived again.
    pub fn apply(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> Derived {
        let mut dirty = Dirty::default();
        let mut report = Report::default();
        for event in events {
            match event {
                ObjectEvent::Put(object) => self.put(*object, &mut dirty, &mut report),
                ObjectEvent::Delete(key) => self.delete(&key, &mut dirty, &mut report),
            }
        }
        let (mut changes, mut touched) = self.derive(&mut dirty, &mut report);
        // A waypoint that is ready for the first time: what is bound to it is derived once more.
        let mut programmed = Dirty::default();
        for key in self.newly_programmed() {
            self.store.set_programmed(key.clone());
            programmed.mark_gateway(&self.store, &self.settings, &key);
        }
        if !programmed.gateways().is_empty() {
            let (more, and) = self.derive(&mut programmed, &mut report);
            changes.extend(more);
            touched.extend(and);
        }
        for dirty in [&dirty, &programmed] {
            self.report_entries(dirty, &touched, &mut report);
        }
        let standings = self.stand([&dirty, &programmed], &touched, &mut report);
        Derived { changes, touched, conditions: report.finish(&mut self.conditions), standings }
    }

    /// Remembers Gateways that were programmed before this process: what a status does not tell.
    pub fn remember_programmed(&mut self, gateways: impl IntoIterator<Item = ObjectKey>) {
        gateways.into_iter().for_each(|key| self.store.set_programmed(key));
    }

    /// The Gateways of waypoints that were programmed once.
    pub fn programmed(&self) -> BTreeSet<ObjectKey> {
        self.store.programmed()
    }

    /// The services of all waypoints: what their pods serve.
    pub fn waypoint_services(&self) -> BTreeSet<ServiceKey> {
        self.store.waypoints().map(|gateway| waypoint::service_key(gateway, &self.settings)).collect()
    }

    /// Derives again what is dirty and applies it.
    fn derive(&mut self, dirty: &mut Dirty, report: &mut Report) -> (Vec<Change>, Touched) {
        dirty.widen(&self.store);
        let mut steps = Steps::default();
        self.derive_services(dirty, &mut steps);
        self.derive_authorization_policies(dirty, &mut steps, report);
        self.derive_peer_authentications(dirty, &mut steps, report);
        self.derive_workloads(dirty, &mut steps, report);
        self.derive_service_entries(dirty, &mut steps);
        self.derive_endpoint_slices(dirty, &mut steps);
        self.derive_routes(dirty, &mut steps);
        let changes = steps.into_changes();
        let touched = self.mesh.apply(changes.iter().cloned());
        (changes, touched)
    }

    /// Sets the conditions of entries: of those that were derived again, and of those that claim an address
    /// whose owner may have changed.
    fn report_entries(&self, dirty: &Dirty, touched: &Touched, report: &mut Report) {
        let of_workload = |workload: &model::Workload| ObjectKey {
            kind: Kind::WorkloadEntry,
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
        };
        let of_service = |service: &model::Service| ObjectKey {
            kind: Kind::ServiceEntry,
            namespace: service.key.namespace.to_string(),
            name: service.name.to_string(),
        };
        let mut entries: BTreeSet<ObjectKey> = dirty.service_entries().clone();
        entries.extend(dirty.workloads().iter().filter(|key| key.kind == Kind::WorkloadEntry).cloned());
        for address in &touched.addresses {
            let services = self.mesh.services_by_address(*address).filter(|s| s.origin.claim().is_some());
            entries.extend(services.map(|service| of_service(service)));
            let workloads = self.mesh.workloads_by_address(*address).filter(|w| w.origin.claim().is_some());
            entries.extend(workloads.map(|workload| of_workload(workload)));
        }
        for key in entries {
            if let Some(entry) = self.store.service_entry(&key).filter(|_| key.kind == Kind::ServiceEntry) {
                let claims = service_entry::Claims::of(entry, &self.store, &self.settings);
                let unbound = waypoint::entry_unbound(&self.store, &key, entry);
                report.set(key.clone(), and(claims.conditions(&key, &self.mesh), unbound));
            } else if let Some(entry) =
                self.store.workload_entry(&key).filter(|_| key.kind == Kind::WorkloadEntry)
            {
                let workload = self.mesh.workload(&context::uid(&key, &self.settings));
                let workload = workload.map(|workload| &**workload);
                let unbound = waypoint::workload_unbound(&self.store, &key, entry);
                report.set(key, and(workload::entry_conditions(entry, workload, &self.mesh), unbound));
            }
        }
    }

    fn put(&mut self, object: Object, dirty: &mut Dirty, report: &mut Report) {
        let key = object.key();
        if let Object::EndpointSlice(slice) = &object
            && slice.of_selector
        {
            // The slice of that name was not a selector's before.
            if self.store.endpoint_slice(&key).is_some() {
                self.delete(&key, dirty, report);
            }
            return;
        }
        if self.store.holds(&object) && !self.is_refused(&key) && !report.has(&key) {
            return;
        }
        report.forget(&key);
        // What the old version reached is touched as well as what the new one reaches.
        dirty.mark(&self.store, &self.settings, &key);
        self.store.put(object);
        dirty.mark(&self.store, &self.settings, &key);
    }

    fn delete(&mut self, key: &ObjectKey, dirty: &mut Dirty, report: &mut Report) {
        dirty.mark(&self.store, &self.settings, key);
        self.store.delete(key);
        report.set(key.clone(), Vec::new());
    }

    fn is_refused(&self, key: &ObjectKey) -> bool {
        self.conditions.get(key).is_some_and(|conditions| conditions.iter().any(|c| !c.accepted))
    }

    fn derive_services(&mut self, dirty: &Dirty, steps: &mut Steps) {
        for name in dirty.hosts() {
            let new = service_entry::owner(&self.store, &self.settings, &name)
                .and_then(|owner| owner.service(&name, &self.store, &self.settings));
            match replace(&mut self.services, name.clone(), new) {
                Some(Replaced::Put(service)) => steps.put_services.push(Change::PutService(service)),
                Some(Replaced::Removed) => steps.removed_services.push(Change::RemoveService(name)),
                None => {}
            }
        }
    }

    fn derive_service_entries(&mut self, dirty: &Dirty, steps: &mut Steps) {
        for key in dirty.service_entries() {
            let mut new = BTreeMap::new();
            if let Some(entry) = self.store.service_entry(key) {
                let claims = service_entry::Claims::of(entry, &self.store, &self.settings);
                let context = Context::new(&self.store, &self.settings, &key.namespace);
                new = claims.endpoints(&context).map(|workload| (workload.uid.clone(), workload)).collect();
            }
            self.put_endpoints(key, new, steps);
        }
    }

    fn derive_endpoint_slices(&mut self, dirty: &Dirty, steps: &mut Steps) {
        for key in dirty.endpoint_slices() {
            let context = Context::new(&self.store, &self.settings, &key.namespace);
            let slice = self.store.endpoint_slice(key);
            let new =
                slice.into_iter().flat_map(|slice| endpoint_slice::workloads(slice, &self.store, &context));
            let new = new.map(|workload| (workload.uid.clone(), workload)).collect();
            self.put_endpoints(key, new, steps);
        }
    }

    /// Puts the workloads that an object lists, and removes those it listed before.
    fn put_endpoints(
        &mut self,
        key: &ObjectKey,
        new: BTreeMap<WorkloadUid, model::Workload>,
        steps: &mut Steps,
    ) {
        let uids: BTreeSet<_> = new.keys().cloned().collect();
        let old = if uids.is_empty() {
            self.endpoints.remove(key)
        } else {
            self.endpoints.insert(key.clone(), uids)
        };
        for uid in old.into_iter().flatten().filter(|uid| !new.contains_key(uid)) {
            self.put_workload(uid, None, steps);
        }
        for (uid, workload) in new {
            self.put_workload(uid, Some(workload), steps);
        }
    }

    fn put_workload(&mut self, uid: WorkloadUid, new: Option<model::Workload>, steps: &mut Steps) {
        match replace(&mut self.workloads, uid.clone(), new) {
            Some(Replaced::Put(workload)) => steps.put_workloads.push(Change::PutWorkload(workload)),
            Some(Replaced::Removed) => steps.removed_workloads.push(Change::RemoveWorkload(uid)),
            None => {}
        }
    }

    fn derive_authorization_policies(&mut self, dirty: &Dirty, steps: &mut Steps, report: &mut Report) {
        for key in dirty.authorization_policies() {
            let derived = self
                .store
                .authorization_policy(key)
                .map(|policy| authorization::derive(policy, &self.settings));
            let name = PolicyKey { namespace: key.namespace.as_str().into(), name: key.name.as_str().into() };
            match derived {
                Some(Ok(derived)) => {
                    report.set(key.clone(), derived.conditions(key));
                    steps.policy(replace(&mut self.policies, name.clone(), derived.policy), name);
                }
                Some(Err(problem)) => {
                    report.set(key.clone(), vec![problem.into_condition(key.clone())]);
                    let policy = self.store.authorization_policy(key);
                    let closed = policy.and_then(|policy| authorization::closed(policy, &self.settings));
                    steps.policy(replace(&mut self.policies, name.clone(), closed), name);
                }
                None => steps.policy(replace(&mut self.policies, name.clone(), None), name),
            }
        }
    }

    fn derive_peer_authentications(&mut self, dirty: &Dirty, steps: &mut Steps, report: &mut Report) {
        for key in dirty.peer_authentications() {
            let name = PolicyKey::of_peer_authentication(&key.namespace, &key.name);
            let new = self.store.peer_authentication(key).map(|object| {
                let candidates =
                    peer_authentication::Candidates::of(&self.store, &self.settings, &key.namespace);
                report.set(key.clone(), candidates.conditions(object));
                candidates.policy(object)
            });
            steps.policy(replace(&mut self.policies, name.clone(), new.flatten()), name);
        }
    }

    fn derive_workloads(&mut self, dirty: &Dirty, steps: &mut Steps, report: &mut Report) {
        for key in dirty.workloads() {
            let uid = context::uid(key, &self.settings);
            let context = Context::new(&self.store, &self.settings, &key.namespace);
            let new = match key.kind {
                Kind::WorkloadEntry => {
                    self.store.workload_entry(key).map(|entry| workload::entry(&context, entry))
                }
                Kind::Pod => self.store.pod(key).and_then(|pod| {
                    let unbound = waypoint::workload_unbound(&self.store, key, pod);
                    report.set(key.clone(), and(workload::pod_conditions(key, pod), unbound));
                    workload::pod(&context, pod)
                }),
                // `Dirty` marks none of them as a workload.
                Kind::Namespace
                | Kind::Node
                | Kind::Service
                | Kind::EndpointSlice
                | Kind::ServiceEntry
                | Kind::AuthorizationPolicy
                | Kind::PeerAuthentication
                | Kind::Gateway
                | Kind::HTTPRoute
                | Kind::GRPCRoute
                | Kind::TLSRoute
                | Kind::TCPRoute
                | Kind::ReferenceGrant => None,
            };
            self.put_workload(uid, new, steps);
        }
    }
}

/// What is said of an object, and one thing more. That all is well is not said then.
fn and(mut conditions: Vec<Condition>, more: Option<Condition>) -> Vec<Condition> {
    if more.is_some() {
        conditions.retain(|condition| !condition.message.is_empty());
    }
    conditions.extend(more);
    conditions
}
