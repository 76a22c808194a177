//! The accepted objects, by namespace, with the indexes that the derivation needs.
//!
//! Entry points: [`Store::put`] and [`Store::delete`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::object::{
    AuthorizationPolicy, EndpointSlice, Kind, Namespace, Node, Object, ObjectKey, PeerAuthentication, Pod,
    Selector, Service, ServiceEntry, WorkloadEntry,
};

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
}

impl Store {
    pub(super) fn put(&mut self, object: Object) {
        let key = object.key();
        self.unindex(&key);
        match &object {
            Object::Pod(pod) => {
                index(&mut self.pods_by_address, &key, canonical(&pod.addresses));
                index(&mut self.pods_by_node, &key, [pod.node.clone()]);
            }
            Object::EndpointSlice(slice) => {
                let addresses = slice.endpoints.iter().map(|e| e.address.to_canonical());
                index(&mut self.slices_by_address, &key, addresses);
                index(&mut self.slices_by_node, &key, slice.endpoints.iter().map(|e| e.node.clone()));
            }
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
        }
    }

    pub(super) fn delete(&mut self, key: &ObjectKey) {
        self.unindex(key);
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
            _ => {}
        }
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
    fn is_empty(&self) -> bool {
        self.namespace.is_none()
            && self.pods.is_empty()
            && self.services.is_empty()
            && self.endpoint_slices.is_empty()
            && self.workload_entries.is_empty()
            && self.service_entries.is_empty()
            && self.authorization_policies.is_empty()
            && self.peer_authentications.is_empty()
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
