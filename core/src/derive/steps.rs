//! The changes of a batch, in an order that is safe to apply one by one: [`Steps`].

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::mesh::Change;
use crate::model::{Authorization, PolicyKey};

/// The effect of [`replace`].
pub(super) enum Replaced<T> {
    Put(Arc<T>),
    Removed,
}

/// Puts or removes a derived value. `None` if that changes nothing.
pub(super) fn replace<K: Ord, T: PartialEq>(
    map: &mut BTreeMap<K, Arc<T>>,
    key: K,
    new: Option<T>,
) -> Option<Replaced<T>> {
    match new {
        Some(new) if map.get(&key).is_some_and(|old| **old == new) => None,
        Some(new) => {
            let new = Arc::new(new);
            map.insert(key, new.clone());
            Some(Replaced::Put(new))
        }
        None => map.remove(&key).map(|_| Replaced::Removed),
    }
}

/// The changes of a batch, in the order of their application.
#[derive(Default)]
pub(super) struct Steps {
    pub(super) put_policies: Vec<Change>,
    pub(super) put_services: Vec<Change>,
    pub(super) put_workloads: Vec<Change>,
    pub(super) removed_workloads: Vec<Change>,
    pub(super) removed_services: Vec<Change>,
    pub(super) removed_policies: Vec<Change>,
    pub(super) put_routes: Vec<Change>,
    pub(super) removed_routes: Vec<Change>,
}

impl Steps {
    pub(super) fn policy(&mut self, replaced: Option<Replaced<Authorization>>, key: PolicyKey) {
        match replaced {
            Some(Replaced::Put(policy)) => self.put_policies.push(Change::PutPolicy(policy)),
            Some(Replaced::Removed) => self.removed_policies.push(Change::RemovePolicy(key)),
            None => {}
        }
    }

    pub(super) fn into_changes(self) -> Vec<Change> {
        let Self {
            put_policies,
            put_services,
            put_workloads,
            removed_workloads,
            removed_services,
            removed_policies,
            put_routes,
            removed_routes,
        } = self;
        // Routes come before the services that a waypoint serves by them.
        [
            put_policies,
            put_routes,
            put_services,
            put_workloads,
            removed_workloads,
            removed_services,
            removed_routes,
            removed_policies,
        ]
        .concat()
    }
}
