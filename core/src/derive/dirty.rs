//! What a batch of events may have touched, and so must be derived again. Marking too much costs time.
//! Marking too little leaves stale results, which property tests look for.
//!
//! Entry point: [`Dirty::mark`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::object::{Kind, ObjectKey, Selector};
use super::service;
use super::settings::Settings;
use super::store::Store;
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
                for name in store.contents(&key.name).into_iter().flat_map(|c| c.services.keys()) {
                    let host = service::key(&key.name, name, settings).hostname.to_string();
                    self.hosts.insert((key.name.clone(), host));
                }
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
                let host = service::key(&key.namespace, &key.name, settings).hostname.to_string();
                for entry in store.entries_with_host(&host) {
                    self.hosts.insert((entry.namespace.clone(), host.clone()));
                }
                self.hosts.insert((key.namespace.clone(), host));
                for slice in store.slices_of(&key.namespace, &key.name) {
                    self.mark_slice(store, &slice);
                }
                if let Some(service) = store.service(key).filter(|service| !service.selector.is_empty()) {
                    self.mark_selected(store, &key.namespace, &service.selector);
                }
            }
            Kind::AuthorizationPolicy => {
                self.authorization_policies.insert(key.clone());
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
