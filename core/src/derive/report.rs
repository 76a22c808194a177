//! The conditions of a batch: [`Report`].

use std::collections::BTreeMap;

use super::condition::Condition;
use super::object::ObjectKey;

/// The conditions of the objects that a batch is about; an empty list means that the object was deleted.
#[derive(Default)]
pub(super) struct Report {
    conditions: BTreeMap<ObjectKey, Vec<Condition>>,
}

impl Report {
    pub(super) fn set(&mut self, key: ObjectKey, conditions: Vec<Condition>) {
        self.conditions.insert(key, conditions);
    }

    pub(super) fn forget(&mut self, key: &ObjectKey) {
        self.conditions.remove(key);
    }

    pub(super) fn has(&self, key: &ObjectKey) -> bool {
        self.conditions.contains_key(key)
    }

    pub(super) fn finish(self, known: &mut BTreeMap<ObjectKey, Vec<Condition>>) -> Vec<Condition> {
        let mut changed = Vec::new();
        for (key, conditions) in self.conditions {
            if conditions.is_empty() {
                known.remove(&key);
            } else if known.get(&key) != Some(&conditions) {
                changed.extend(conditions.iter().cloned());
                known.insert(key, conditions);
            }
        }
        changed
    }
}
