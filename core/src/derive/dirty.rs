//! What a batch of events may have touched, and so must be derived again. Marking too much costs time; marking too
//! little would leave a stale answer, which the property tests of [`super`] look for.

use std::collections::BTreeSet;

use super::object::{Kind, ObjectKey, Selector};
use super::store::Store;

/// What must be derived again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    services: BTreeSet<ObjectKey>,
    authorization_policies: BTreeSet<ObjectKey>,
    peer_authentications: BTreeSet<ObjectKey>,
    workloads: BTreeSet<ObjectKey>,
    /// Namespaces whose peer authentication may be another.
    peers: BTreeSet<String>,
    all_peers: bool,
}

impl Dirty {
    /// Marks what the version of the object that the store holds reaches.
    pub(super) fn mark(&mut self, store: &Store, root: &str, key: &ObjectKey) {
        match key.kind {
            Kind::Namespace => self.mark_selected(store, &key.name, &Selector::new()),
            Kind::Pod | Kind::WorkloadEntry => {
                self.workloads.insert(key.clone());
            }
            Kind::Service => {
                self.services.insert(key.clone());
                if let Some(service) = store.service(key).filter(|service| !service.selector.is_empty()) {
                    self.mark_selected(store, &key.namespace, &service.selector);
                }
            }
            Kind::AuthorizationPolicy => {
                self.authorization_policies.insert(key.clone());
                let selector = store.authorization_policy(key).map(|policy| &policy.selector);
                let Some(selector) = selector.filter(|selector| !selector.is_empty()) else { return };
                if key.namespace == root {
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
                self.all_peers |= key.namespace == root;
            }
        }
    }

    /// Adds what follows from the marks.
    pub(super) fn widen(&mut self, store: &Store) {
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

    pub(super) fn services(&self) -> &BTreeSet<ObjectKey> {
        &self.services
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

    fn mark_selected(&mut self, store: &Store, namespace: &str, selector: &Selector) {
        if let Some(contents) = store.contents(namespace) {
            self.workloads.extend(contents.selected(selector));
        }
    }
}
