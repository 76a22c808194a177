//! What a batch of events may have touched, and so must be derived again. Marking too much costs time.
//! Marking too little leaves stale results, which property tests look for.
//!
//! Entry point: [`Dirty::mark`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::object::{Kind, ObjectKey, Selector, TargetRef};
use super::service;
use super::settings::Settings;
use super::store::{Contents, Labelled, Store};
use super::{routes, waypoint};
use crate::model::ServiceKey;

/// What must be derived again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    service_entries: BTreeSet<ObjectKey>,
    endpoint_slices: BTreeSet<ObjectKey>,
    /// Host names by namespace whose service may have changed.
    hosts: BTreeSet<(String, String)>,
    authorization_policies: BTreeSet<ObjectKey>,
    peer_authentications: BTreeSet<ObjectKey>,
    workloads: BTreeSet<ObjectKey>,
    gateways: BTreeSet<ObjectKey>,
    /// Services whose conditions may have changed.
    services: BTreeSet<ObjectKey>,
    /// Routes that must be compiled again.
    routes: BTreeSet<ObjectKey>,
    /// Services whose routes may have changed, by namespace and name.
    routed: BTreeSet<(String, String)>,
    /// Namespaces whose peer authentication may have changed.
    peers: BTreeSet<String>,
    all_peers: bool,
}

impl Dirty {
    /// Marks what the object's version in the store affects.
    pub(super) fn mark(&mut self, store: &Store, settings: &Settings, key: &ObjectKey) {
        let root = &settings.root_namespace;
        match key.kind {
            Kind::Namespace => {
                self.mark_selected(store, &key.name, &Selector::new());
                self.mark_services(store, settings, &key.name, |_| true);
                self.mark_entries(store, &key.name, |_| true);
            }
            Kind::Node => {
                self.workloads.extend(store.pods_on(&key.name).cloned());
                self.endpoint_slices.extend(store.slices_on(&key.name).cloned());
            }
            Kind::Pod => {
                self.workloads.insert(key.clone());
                for address in store.pod(key).into_iter().flat_map(|pod| &pod.addresses) {
                    self.mark_listed(store, *address);
                }
            }
            Kind::WorkloadEntry => {
                self.workloads.insert(key.clone());
            }
            Kind::EndpointSlice => self.mark_slice(store, key),
            Kind::ServiceEntry => {
                self.service_entries.insert(key.clone());
                let Some(entry) = store.service_entry(key) else { return };
                self.hosts.extend(entry.hosts.iter().map(|host| (key.namespace.clone(), host.clone())));
                if !entry.selector.is_empty() {
                    self.mark_selected(store, &key.namespace, &entry.selector);
                }
            }
            Kind::Service => {
                self.mark_service(store, settings, &key.namespace, &key.name);
                let host = service::key(&key.namespace, &key.name, settings).hostname.to_string();
                for entry in store.entries_with_host(&host) {
                    self.hosts.insert((entry.namespace.clone(), host.clone()));
                }
                for slice in store.slices_of(&key.namespace, &key.name) {
                    self.mark_slice(store, &slice);
                }
                if let Some(service) = store.service(key).filter(|service| !service.selector.is_empty()) {
                    self.mark_selected(store, &key.namespace, &service.selector);
                }
            }
            Kind::AuthorizationPolicy => {
                self.authorization_policies.insert(key.clone());
                self.mark_targets(store, settings, key);
                let selector = store.authorization_policy(key).map(|policy| &policy.selector);
                let Some(selector) = selector.filter(|selector| !selector.is_empty()) else { return };
                if key.namespace == *root {
                    for namespace in store.names() {
                        self.mark_selected(store, namespace, selector);
                    }
                } else {
                    self.mark_selected(store, &key.namespace, selector);
                }
            }
            Kind::PeerAuthentication => {
                self.peer_authentications.insert(key.clone());
                self.peers.insert(key.namespace.clone());
                self.all_peers |= key.namespace == *root;
            }
            Kind::Gateway => self.mark_gateway(store, settings, key),
            Kind::HTTPRoute | Kind::GRPCRoute | Kind::TLSRoute | Kind::TCPRoute => {
                self.routes.insert(key.clone());
                for (namespace, name) in store.route(key).into_iter().flat_map(routes::parents) {
                    // Of one kind it takes a port from the routes of its Service that are of another.
                    self.routes.extend(store.routes_with(&namespace, &name).cloned());
                    self.routed.insert((namespace, name));
                }
            }
            Kind::ReferenceGrant => {
                let contents = store.names().filter_map(|name| store.contents(name));
                let crossing = contents.flat_map(Contents::routes);
                let crossing = crossing.filter(|route| route.metadata.namespace != key.namespace);
                self.routes.extend(crossing.map(|route| ObjectKey {
                    kind: Kind::of_route(route.kind),
                    namespace: route.metadata.namespace.clone(),
                    name: route.metadata.name.clone(),
                }));
            }
        }
    }

    /// A Gateway, the waypoint's own Service and its endpoints, and all that is bound to it.
    pub(super) fn mark_gateway(&mut self, store: &Store, settings: &Settings, key: &ObjectKey) {
        self.gateways.insert(key.clone());
        let own = ObjectKey { kind: Kind::Service, ..key.clone() };
        self.mark_service(store, settings, &own.namespace, &own.name);
        if let Some(service) = store.service(&own).filter(|service| !service.selector.is_empty()) {
            self.mark_selected(store, &own.namespace, &service.selector);
        }
        let names: Vec<String> = store.names().map(str::to_owned).collect();
        for namespace in names {
            let of_namespace = waypoint::named(store, &namespace, |_| None);
            // An object may name it without its namespace doing so, and the other way round.
            let names_it = |label: &dyn Fn(&str) -> Option<String>| {
                let (name, other) = (label(waypoint::USE_WAYPOINT), label(waypoint::USE_WAYPOINT_NAMESPACE));
                match name {
                    Some(name) => {
                        name == key.name && other.unwrap_or_else(|| namespace.clone()) == key.namespace
                    }
                    None => {
                        of_namespace.is_some_and(|it| it.namespace == key.namespace && it.name == key.name)
                    }
                }
            };
            let named_by = |labels: &Selector| names_it(&|name| labels.get(name).cloned());
            self.mark_services(store, settings, &namespace, named_by);
            self.mark_entries(store, &namespace, named_by);
            let Some(contents) = store.contents(&namespace) else { continue };
            let named_by = |it: &dyn Labelled| names_it(&|name| it.label(name).map(str::to_owned));
            let pods = contents.pods.values().filter(|pod| named_by(*pod));
            let pods = pods.map(|pod| (Kind::Pod, &pod.metadata));
            let entries = contents.workload_entries.values().filter(|entry| named_by(*entry));
            let entries = entries.map(|entry| (Kind::WorkloadEntry, &entry.metadata));
            self.workloads.extend(pods.chain(entries).map(|(kind, metadata)| ObjectKey {
                kind,
                namespace: metadata.namespace.clone(),
                name: metadata.name.clone(),
            }));
        }
    }

    /// What a policy for waypoints concerns: bindings wait for a waypoint where a policy needs it.
    fn mark_targets(&mut self, store: &Store, settings: &Settings, key: &ObjectKey) {
        let Some(policy) = store.authorization_policy(key).filter(|it| !it.target_refs.is_empty()) else {
            return;
        };
        self.mark_services(store, settings, &key.namespace, |_| true);
        self.mark_entries(store, &key.namespace, |_| true);
        let in_root = key.namespace == settings.root_namespace;
        let gateways = |namespace: &str| -> Vec<ObjectKey> {
            let contents = store.contents(namespace).into_iter();
            contents.flat_map(|contents| contents.gateways.values()).map(waypoint::key).collect()
        };
        // One that cannot be read may mean any.
        let class = |target: &TargetRef| target.kind == "GatewayClass" || *target == TargetRef::default();
        let of_classes = in_root && policy.target_refs.iter().any(class);
        let namespaces: Vec<String> =
            if of_classes { store.names().map(str::to_owned).collect() } else { vec![key.namespace.clone()] };
        for gateway in namespaces.iter().flat_map(|namespace| gateways(namespace)) {
            self.mark_gateway(store, settings, &gateway);
        }
    }

    /// The Services of a namespace with such labels.
    fn mark_services(
        &mut self,
        store: &Store,
        settings: &Settings,
        namespace: &str,
        matches: impl Fn(&Selector) -> bool,
    ) {
        let services = store.contents(namespace).into_iter().flat_map(|contents| &contents.services);
        for (name, _) in services.filter(|(_, service)| matches(&service.metadata.labels)) {
            self.mark_service(store, settings, namespace, name);
        }
    }

    /// A Service, its routes, and the status of routes that name it.
    fn mark_service(&mut self, store: &Store, settings: &Settings, namespace: &str, name: &str) {
        let host = service::key(namespace, name, settings).hostname.to_string();
        self.hosts.insert((namespace.to_owned(), host));
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.routes.extend(store.routes_with(&namespace, &name).cloned());
        self.services.insert(ObjectKey {
            kind: Kind::Service,
            namespace: namespace.clone(),
            name: name.clone(),
        });
        self.routed.insert((namespace, name));
    }

    /// The hosts of a namespace's ServiceEntries with such labels.
    fn mark_entries(&mut self, store: &Store, namespace: &str, matches: impl Fn(&Selector) -> bool) {
        let entries = store.contents(namespace).into_iter().flat_map(|c| c.service_entries.values());
        for entry in entries.filter(|entry| matches(&entry.metadata.labels)) {
            self.hosts.extend(entry.hosts.iter().map(|host| (namespace.to_owned(), host.clone())));
        }
    }

    /// Adds what follows from the marks.
    pub(super) fn widen(&mut self, store: &Store) {
        self.widen_to_rivals(store);
        let namespaces: Vec<String> = if self.all_peers {
            store.names().map(str::to_owned).collect()
        } else {
            std::mem::take(&mut self.peers).into_iter().collect()
        };
        for namespace in namespaces {
            let Some(contents) = store.contents(&namespace) else { continue };
            let keys = contents.peer_authentications.keys().map(|name| ObjectKey {
                kind: Kind::PeerAuthentication,
                namespace: namespace.clone(),
                name: name.clone(),
            });
            self.peer_authentications.extend(keys);
            self.mark_selected(store, &namespace, &Selector::new());
        }
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = ServiceKey> {
        self.hosts.iter().map(|(namespace, host)| ServiceKey {
            namespace: namespace.as_str().into(),
            hostname: host.as_str().into(),
        })
    }

    pub(super) fn service_entries(&self) -> &BTreeSet<ObjectKey> {
        &self.service_entries
    }

    pub(super) fn endpoint_slices(&self) -> &BTreeSet<ObjectKey> {
        &self.endpoint_slices
    }

    pub(super) fn authorization_policies(&self) -> &BTreeSet<ObjectKey> {
        &self.authorization_policies
    }

    pub(super) fn peer_authentications(&self) -> &BTreeSet<ObjectKey> {
        &self.peer_authentications
    }

    pub(super) fn gateways(&self) -> &BTreeSet<ObjectKey> {
        &self.gateways
    }

    pub(super) fn services(&self) -> &BTreeSet<ObjectKey> {
        &self.services
    }

    pub(super) fn routes(&self) -> &BTreeSet<ObjectKey> {
        &self.routes
    }

    /// Services whose routes may have changed, by namespace and name.
    pub(super) fn routed(&self) -> &BTreeSet<(String, String)> {
        &self.routed
    }

    pub(super) fn workloads(&self) -> &BTreeSet<ObjectKey> {
        &self.workloads
    }

    /// Service entries that claim one of the hosts: they may have won or lost it.
    fn widen_to_rivals(&mut self, store: &Store) {
        let namespaces: BTreeSet<String> =
            self.hosts.iter().map(|(namespace, _)| namespace.clone()).collect();
        for namespace in namespaces {
            let Some(contents) = store.contents(&namespace) else { continue };
            for (name, entry) in &contents.service_entries {
                let claims = |host: &String| self.hosts.contains(&(namespace.clone(), host.clone()));
                if !entry.hosts.iter().any(claims) {
                    continue;
                }
                let (namespace, name) = (namespace.clone(), name.clone());
                self.service_entries.insert(ObjectKey { kind: Kind::ServiceEntry, namespace, name });
                if !entry.selector.is_empty() {
                    self.workloads.extend(contents.selected(&entry.selector));
                }
            }
        }
    }

    /// A slice, and the pods that it lists.
    fn mark_slice(&mut self, store: &Store, key: &ObjectKey) {
        self.endpoint_slices.insert(key.clone());
        for endpoint in store.endpoint_slice(key).into_iter().flat_map(|slice| &slice.endpoints) {
            self.workloads.extend(store.pods_at(endpoint.address).cloned());
        }
    }

    /// Slices that list the address, and the pods that have it.
    fn mark_listed(&mut self, store: &Store, address: IpAddr) {
        self.endpoint_slices.extend(store.slices_at(address).cloned());
        if store.slices_at(address).next().is_some() {
            self.workloads.extend(store.pods_at(address).cloned());
        }
    }

    fn mark_selected(&mut self, store: &Store, namespace: &str, selector: &Selector) {
        if let Some(contents) = store.contents(namespace) {
            self.workloads.extend(contents.selected(selector));
        }
    }
}
