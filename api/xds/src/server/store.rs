//! The published resources, by name and in the order of their last change: [`Store`].
//!
//! A session holds only the revision that it has read. All later changes are found by the order, once for
//! each resource, so a client that reads slowly costs no memory. The number of removals is limited. A session
//! that is further behind must start again with the versions that its client holds.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::resource::{COUNT, Encoded, ResourceType};

/// The most removals of a type that are kept, unless it has more resources: then as many as those.
const REMOVALS: usize = 10_000;

/// The session's revision is older than the oldest removal that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behind;

/// What changed since a revision.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub(super) put: Vec<Arc<Encoded>>,
    pub(super) removed: Vec<Arc<str>>,
    /// Whether `put` has all resources of the type.
    pub(super) whole: bool,
}

#[derive(Debug)]
pub(super) struct Store {
    ready: bool,
    revision: u64,
    removals: usize,
    tables: [Table; COUNT],
}

#[derive(Debug, Default)]
struct Table {
    resources: BTreeMap<Arc<str>, Entry>,
    /// Names in `resources` by when they changed.
    changed: BTreeMap<u64, Arc<str>>,
    /// Removed names, and the same by when they were.
    tombstones: HashMap<Arc<str>, u64>,
    removed: BTreeMap<u64, Arc<str>>,
    /// Removals up to this revision are not kept.
    forgotten: u64,
}

#[derive(Debug)]
struct Entry {
    resource: Arc<Encoded>,
    at: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self::with_removals(REMOVALS)
    }
}

impl Store {
    pub(super) fn with_removals(removals: usize) -> Self {
        Self { ready: false, revision: 0, removals, tables: Default::default() }
    }

    /// Sessions respond from now on. Before, an empty store would remove all resources of reconnecting
    /// clients.
    pub(super) fn set_ready(&mut self) {
        self.ready = true;
    }

    pub(super) fn ready(&self) -> bool {
        self.ready
    }

    /// Increases with every change.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn len(&self, kind: ResourceType) -> usize {
        self.tables[kind.index()].resources.len()
    }

    /// Returns whether the resource has changed.
    pub(super) fn put(&mut self, kind: ResourceType, resource: Encoded) -> bool {
        let table = &mut self.tables[kind.index()];
        if let Some(held) = table.resources.get(&resource.name) {
            if held.resource.version == resource.version {
                return false;
            }
            table.changed.remove(&held.at);
        }
        if let Some(at) = table.tombstones.remove(&resource.name) {
            table.removed.remove(&at);
        }
        self.revision += 1;
        let name = resource.name.clone();
        table.changed.insert(self.revision, name.clone());
        table.resources.insert(name, Entry { resource: Arc::new(resource), at: self.revision });
        true
    }

    /// Returns whether there was a resource.
    pub(super) fn remove(&mut self, kind: ResourceType, name: &str) -> bool {
        let table = &mut self.tables[kind.index()];
        let Some((name, entry)) = table.resources.remove_entry(name) else { return false };
        table.changed.remove(&entry.at);
        self.revision += 1;
        table.tombstones.insert(name.clone(), self.revision);
        table.removed.insert(self.revision, name);
        while table.removed.len() > self.removals.max(table.resources.len()) {
            let Some((at, name)) = table.removed.pop_first() else { break };
            table.tombstones.remove(&name);
            table.forgotten = at;
        }
        true
    }

    pub(super) fn get(&self, kind: ResourceType, name: &str) -> Option<&Arc<Encoded>> {
        self.tables[kind.index()].resources.get(name).map(|entry| &entry.resource)
    }

    pub(super) fn all(&self, kind: ResourceType) -> impl Iterator<Item = &Arc<Encoded>> {
        self.tables[kind.index()].resources.values().map(|entry| &entry.resource)
    }

    /// The changes after `revision`, oldest first.
    pub(super) fn since(&self, kind: ResourceType, revision: u64) -> Result<Changed, Behind> {
        let table = &self.tables[kind.index()];
        if revision < table.forgotten {
            return Err(Behind);
        }
        let put = table.changed.range(revision + 1..).filter_map(|(_, name)| table.resources.get(name));
        Ok(Changed {
            put: put.map(|entry| entry.resource.clone()).collect(),
            removed: table.removed.range(revision + 1..).map(|(_, name)| name.clone()).collect(),
            whole: false,
        })
    }
}
