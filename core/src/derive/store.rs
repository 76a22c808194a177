//! The accepted objects, by namespace, with the indexes that the derivation needs.
//!
//! Entry points: [`Store::put`] and [`Store::delete`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::object::{
    AuthorizationPolicy, EndpointSlice, Gateway, Kind, Namespace, Node, Object, ObjectKey,
    PeerAuthentication, Pod, ReferenceGrant, RouteFilter, RouteObject, Selector, Service, ServiceEntry,
    WorkloadEntry,
};
use super::standing::WAYPOINT_CLASS;
use crate::route::RouteKind;

/// All objects.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    namespaces: BTreeMap<String, Contents>,
    nodes: BTreeMap<String, Node>,
    pods_by_address: ByAddress,
    slices_by_address: ByAddress,
    pods_by_node: Index<String>,
    slices_by_node: Index<String>,
    entries_by_host: Index<String>,
    /// Routes by the namespace and name of each Service that they name, as parent or as backend.
    routes_by_service: Index<(String, String)>,
    /// Gateways that were programmed once. One that is deleted is forgotten.
    programmed: BTreeSet<ObjectKey>,
}

/// Keys of objects by something that they name.
type Index<K> = BTreeMap<K, BTreeSet<ObjectKey>>;
type ByAddress = Index<IpAddr>;

/// What a namespace holds, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    pub(super) namespace: Option<Namespace>,
    pub(super) pods: BTreeMap<String, Pod>,
    pub(super) services: BTreeMap<String, Service>,
    pub(super) endpoint_slices: BTreeMap<String, EndpointSlice>,
    pub(super) workload_entries: BTreeMap<String, WorkloadEntry>,
    pub(super) service_entries: BTreeMap<String, ServiceEntry>,
    pub(super) authorization_policies: BTreeMap<String, AuthorizationPolicy>,
    pub(super) peer_authentications: BTreeMap<String, PeerAuthentication>,
    pub(super) gateways: BTreeMap<String, Gateway>,
    pub(super) http_routes: BTreeMap<String, RouteObject>,
    pub(super) grpc_routes: BTreeMap<String, RouteObject>,
    pub(super) tls_routes: BTreeMap<String, RouteObject>,
    pub(super) tcp_routes: BTreeMap<String, RouteObject>,
    pub(super) reference_grants: BTreeMap<String, ReferenceGrant>,
}

impl Store {
    pub(super) fn put(&mut self, object: Object) {
        let key = object.key();
        self.unindex(&key);
        match &object {
            Object::Gateway(gateway) if gateway.was_programmed => drop(self.programmed.insert(key.clone())),
            Object::Pod(pod) => {
                index(&mut self.pods_by_address, &key, canonical(&pod.addresses));
                index(&mut self.pods_by_node, &key, [pod.node.clone()]);
            }
            Object::EndpointSlice(slice) => {
                let addresses = slice.endpoints.iter().map(|e| e.address.to_canonical());
                index(&mut self.slices_by_address, &key, addresses);
                index(&mut self.slices_by_node, &key, slice.endpoints.iter().map(|e| e.node.clone()));
            }
            Object::Route(route) => index(&mut self.routes_by_service, &key, named_services(route)),
            Object::ServiceEntry(entry) => {
                index(&mut self.entries_by_host, &key, entry.hosts.clone());
            }
            _ => {}
        }
        if let Object::Node(node) = object {
            self.nodes.insert(key.name, node);
            return;
        }
        let namespace = if key.kind == Kind::Namespace { &key.name } else { &key.namespace };
        let contents = self.namespaces.entry(namespace.clone()).or_default();
        match object {
            Object::Namespace(o) => contents.namespace = Some(o),
            // Taken above.
            Object::Node(_) => {}
            Object::Pod(o) => drop(contents.pods.insert(key.name, o)),
            Object::Service(o) => drop(contents.services.insert(key.name, o)),
            Object::EndpointSlice(o) => drop(contents.endpoint_slices.insert(key.name, o)),
            Object::WorkloadEntry(o) => drop(contents.workload_entries.insert(key.name, o)),
            Object::ServiceEntry(o) => drop(contents.service_entries.insert(key.name, o)),
            Object::AuthorizationPolicy(o) => drop(contents.authorization_policies.insert(key.name, o)),
            Object::PeerAuthentication(o) => drop(contents.peer_authentications.insert(key.name, o)),
            Object::Gateway(o) => drop(contents.gateways.insert(key.name, o)),
            Object::Route(o) => drop(contents.routes_mut(o.kind).insert(key.name, *o)),
            Object::ReferenceGrant(o) => drop(contents.reference_grants.insert(key.name, o)),
        }
    }

    pub(super) fn delete(&mut self, key: &ObjectKey) {
        self.unindex(key);
        self.programmed.remove(key);
        if key.kind == Kind::Node {
            self.nodes.remove(&key.name);
            return;
        }
        let namespace = if key.kind == Kind::Namespace { &key.name } else { &key.namespace };
        let Some(contents) = self.namespaces.get_mut(namespace) else { return };
        match key.kind {
            Kind::Namespace => contents.namespace = None,
            Kind::Node => {}
            Kind::Pod => drop(contents.pods.remove(&key.name)),
            Kind::Service => drop(contents.services.remove(&key.name)),
            Kind::EndpointSlice => drop(contents.endpoint_slices.remove(&key.name)),
            Kind::WorkloadEntry => drop(contents.workload_entries.remove(&key.name)),
            Kind::ServiceEntry => drop(contents.service_entries.remove(&key.name)),
            Kind::AuthorizationPolicy => drop(contents.authorization_policies.remove(&key.name)),
            Kind::PeerAuthentication => drop(contents.peer_authentications.remove(&key.name)),
            Kind::Gateway => drop(contents.gateways.remove(&key.name)),
            Kind::HTTPRoute => drop(contents.http_routes.remove(&key.name)),
            Kind::GRPCRoute => drop(contents.grpc_routes.remove(&key.name)),
            Kind::TLSRoute => drop(contents.tls_routes.remove(&key.name)),
            Kind::TCPRoute => drop(contents.tcp_routes.remove(&key.name)),
            Kind::ReferenceGrant => drop(contents.reference_grants.remove(&key.name)),
        }
        if contents.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// Whether the store has this version.
    pub(super) fn holds(&self, object: &Object) -> bool {
        let key = object.key();
        match object {
            Object::Namespace(o) => self.contents(&key.name).and_then(|c| c.namespace.as_ref()) == Some(o),
            Object::Node(o) => self.node(&key.name) == Some(o),
            Object::Pod(o) => self.pod(&key) == Some(o),
            Object::Service(o) => self.service(&key) == Some(o),
            Object::EndpointSlice(o) => self.endpoint_slice(&key) == Some(o),
            Object::WorkloadEntry(o) => self.workload_entry(&key) == Some(o),
            Object::ServiceEntry(o) => self.service_entry(&key) == Some(o),
            Object::AuthorizationPolicy(o) => self.authorization_policy(&key) == Some(o),
            Object::PeerAuthentication(o) => self.peer_authentication(&key) == Some(o),
            Object::Gateway(o) => self.gateway(&key.namespace, &key.name) == Some(o),
            Object::Route(o) => self.route(&key) == Some(&**o),
            Object::ReferenceGrant(o) => {
                self.contents(&key.namespace).and_then(|c| c.reference_grants.get(&key.name)) == Some(o)
            }
        }
    }

    pub(super) fn contents(&self, namespace: &str) -> Option<&Contents> {
        self.namespaces.get(namespace)
    }

    /// The names of all namespaces with objects.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(String::as_str)
    }

    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The keys of the pods that run on a node.
    pub(super) fn pods_on(&self, node: &str) -> impl Iterator<Item = &ObjectKey> {
        self.pods_by_node.get(node).into_iter().flatten()
    }

    pub(super) fn pod(&self, key: &ObjectKey) -> Option<&Pod> {
        self.contents(&key.namespace)?.pods.get(&key.name)
    }

    pub(super) fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.contents(&key.namespace)?.services.get(&key.name)
    }

    pub(super) fn endpoint_slice(&self, key: &ObjectKey) -> Option<&EndpointSlice> {
        self.contents(&key.namespace)?.endpoint_slices.get(&key.name)
    }

    /// The pods that have the address, as their own or as their node's.
    pub(super) fn pods_at(&self, address: IpAddr) -> impl Iterator<Item = &ObjectKey> {
        self.pods_by_address.get(&address.to_canonical()).into_iter().flatten()
    }

    /// The slices of a service.
    pub(super) fn slices_of(&self, namespace: &str, service: &str) -> Vec<ObjectKey> {
        let slices =
            self.contents(namespace).into_iter().flat_map(|contents| contents.endpoint_slices.values());
        slices.filter(|slice| slice.service == service).map(EndpointSlice::key).collect()
    }

    /// The slices with an endpoint on the node.
    pub(super) fn slices_on(&self, node: &str) -> impl Iterator<Item = &ObjectKey> {
        self.slices_by_node.get(node).into_iter().flatten()
    }

    /// The slices that list the address.
    pub(super) fn slices_at(&self, address: IpAddr) -> impl Iterator<Item = &ObjectKey> {
        self.slices_by_address.get(&address.to_canonical()).into_iter().flatten()
    }

    /// The service entries, of whatever namespace, that claim the host name.
    pub(super) fn entries_with_host(&self, host: &str) -> impl Iterator<Item = &ObjectKey> {
        self.entries_by_host.get(host).into_iter().flatten()
    }

    fn unindex(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::Pod => {
                let Some(pod) = self.pod(key) else { return };
                let (addresses, node) = (canonical(&pod.addresses), pod.node.clone());
                unindex(&mut self.pods_by_address, key, addresses);
                unindex(&mut self.pods_by_node, key, [node]);
            }
            Kind::EndpointSlice => {
                let Some(slice) = self.endpoint_slice(key) else { return };
                let named = slice.endpoints.iter().map(|e| (e.address.to_canonical(), e.node.clone()));
                let (addresses, nodes): (Vec<IpAddr>, Vec<String>) = named.unzip();
                unindex(&mut self.slices_by_address, key, addresses);
                unindex(&mut self.slices_by_node, key, nodes);
            }
            Kind::ServiceEntry => {
                let hosts = self.service_entry(key).map(|entry| entry.hosts.clone()).unwrap_or_default();
                unindex(&mut self.entries_by_host, key, hosts);
            }
            Kind::HTTPRoute | Kind::GRPCRoute | Kind::TLSRoute | Kind::TCPRoute => {
                let named = self.route(key).map(named_services).unwrap_or_default();
                unindex(&mut self.routes_by_service, key, named);
            }
            _ => {}
        }
    }

    /// Whether the Gateway was programmed once.
    pub(super) fn was_programmed(&self, gateway: &ObjectKey) -> bool {
        self.programmed.contains(gateway)
    }

    /// Remembers that the Gateway was programmed.
    pub(super) fn set_programmed(&mut self, gateway: ObjectKey) {
        self.programmed.insert(gateway);
    }

    /// The Gateways that were programmed once and are still there.
    pub(super) fn programmed(&self) -> BTreeSet<ObjectKey> {
        let there = |key: &&ObjectKey| self.gateway(&key.namespace, &key.name).is_some();
        self.programmed.iter().filter(there).cloned().collect()
    }

    /// The Gateways of waypoints.
    pub(super) fn waypoints(&self) -> impl Iterator<Item = &Gateway> {
        let gateways = self.namespaces.values().flat_map(|contents| contents.gateways.values());
        gateways.filter(|gateway| gateway.class == WAYPOINT_CLASS)
    }

    pub(super) fn gateway(&self, namespace: &str, name: &str) -> Option<&Gateway> {
        self.contents(namespace)?.gateways.get(name)
    }

    /// A route of any kind.
    pub(super) fn route(&self, key: &ObjectKey) -> Option<&RouteObject> {
        let contents = self.contents(&key.namespace)?;
        match key.kind {
            Kind::HTTPRoute => contents.http_routes.get(&key.name),
            Kind::GRPCRoute => contents.grpc_routes.get(&key.name),
            Kind::TLSRoute => contents.tls_routes.get(&key.name),
            Kind::TCPRoute => contents.tcp_routes.get(&key.name),
            _ => None,
        }
    }

    /// The routes that name the Service, as parent or as backend.
    pub(super) fn routes_with(&self, namespace: &str, service: &str) -> impl Iterator<Item = &ObjectKey> {
        self.routes_by_service.get(&(namespace.to_owned(), service.to_owned())).into_iter().flatten()
    }

    pub(super) fn workload_entry(&self, key: &ObjectKey) -> Option<&WorkloadEntry> {
        self.contents(&key.namespace)?.workload_entries.get(&key.name)
    }

    pub(super) fn service_entry(&self, key: &ObjectKey) -> Option<&ServiceEntry> {
        self.contents(&key.namespace)?.service_entries.get(&key.name)
    }

    pub(super) fn authorization_policy(&self, key: &ObjectKey) -> Option<&AuthorizationPolicy> {
        self.contents(&key.namespace)?.authorization_policies.get(&key.name)
    }

    pub(super) fn peer_authentication(&self, key: &ObjectKey) -> Option<&PeerAuthentication> {
        self.contents(&key.namespace)?.peer_authentications.get(&key.name)
    }
}

/// The Services that a route names, each with its namespace.
fn named_services(route: &RouteObject) -> BTreeSet<(String, String)> {
    let own = &route.metadata.namespace;
    let at = |namespace: &Option<String>, name: &String| {
        (namespace.clone().unwrap_or_else(|| own.clone()), name.clone())
    };
    let parents = route.parents.iter().map(|parent| at(&parent.namespace, &parent.name));
    let backends = route.rules.iter().flat_map(|rule| {
        let backends = rule.backends.iter().map(|backend| &backend.target);
        let mirrors = rule.filters.iter().filter_map(|filter| match filter {
            RouteFilter::Mirror { backend, .. } => Some(backend),
            RouteFilter::Ready(_) => None,
        });
        backends.chain(mirrors).map(|target| at(&target.namespace, &target.name))
    });
    parents.chain(backends).collect()
}

fn canonical(addresses: &[IpAddr]) -> Vec<IpAddr> {
    addresses.iter().map(IpAddr::to_canonical).collect()
}

fn index<K: Ord>(index: &mut Index<K>, key: &ObjectKey, under: impl IntoIterator<Item = K>) {
    for name in under {
        index.entry(name).or_default().insert(key.clone());
    }
}

fn unindex<K: Ord>(index: &mut Index<K>, key: &ObjectKey, under: impl IntoIterator<Item = K>) {
    for name in under {
        if let Some(keys) = index.get_mut(&name) {
            keys.remove(key);
            if keys.is_empty() {
                index.remove(&name);
            }
        }
    }
}

impl Contents {
    fn routes_mut(&mut self, kind: RouteKind) -> &mut BTreeMap<String, RouteObject> {
        match kind {
            RouteKind::Http => &mut self.http_routes,
            RouteKind::Grpc => &mut self.grpc_routes,
            RouteKind::Tls => &mut self.tls_routes,
            RouteKind::Tcp => &mut self.tcp_routes,
        }
    }

    /// Its routes of every kind.
    pub(super) fn routes(&self) -> impl Iterator<Item = &RouteObject> {
        let of_requests = self.http_routes.values().chain(self.grpc_routes.values());
        of_requests.chain(self.tls_routes.values()).chain(self.tcp_routes.values())
    }

    fn is_empty(&self) -> bool {
        self.namespace.is_none()
            && self.pods.is_empty()
            && self.services.is_empty()
            && self.endpoint_slices.is_empty()
            && self.workload_entries.is_empty()
            && self.service_entries.is_empty()
            && self.authorization_policies.is_empty()
            && self.peer_authentications.is_empty()
            && self.gateways.is_empty()
            && self.http_routes.is_empty()
            && self.grpc_routes.is_empty()
            && self.tls_routes.is_empty()
            && self.tcp_routes.is_empty()
            && self.reference_grants.is_empty()
    }

    /// The keys of the pods and workload entries that a selector selects; an empty one selects all.
    pub(super) fn selected<'a>(&'a self, selector: &'a Selector) -> impl Iterator<Item = ObjectKey> + 'a {
        let pods =
            self.pods.values().filter(|pod| selects(selector, *pod)).map(|pod| (Kind::Pod, &pod.metadata));
        let entries = self.workload_entries.values().filter(|entry| selects(selector, *entry));
        let entries = entries.map(|entry| (Kind::WorkloadEntry, &entry.metadata));
        pods.chain(entries).map(|(kind, metadata)| ObjectKey {
            kind,
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
        })
    }
}

/// Objects that selectors select by label.
pub(super) trait Labelled {
    fn label(&self, name: &str) -> Option<&str>;
}

impl Labelled for Pod {
    fn label(&self, name: &str) -> Option<&str> {
        self.metadata.labels.get(name).map(String::as_str)
    }
}

impl Labelled for WorkloadEntry {
    /// `spec.labels` take precedence over the object's labels.
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).or_else(|| self.metadata.labels.get(name)).map(String::as_str)
    }
}

/// Whether all labels of the selector are there; an empty one selects all.
pub(super) fn selects(selector: &Selector, object: &impl Labelled) -> bool {
    selector.iter().all(|(name, value)| object.label(name) == Some(value))
}
