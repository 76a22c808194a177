//! What is published: every resource by name, and the order in which resources last changed.
//!
//! A session remembers only how far it has read. Whatever changed since then is found in the order, once for
//! each resource however often it changed, so a client that reads slowly costs no memory. Removals are
//! remembered up to a limit; a session that is further behind than that starts again from what its client
//! says it holds.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::resource::{Encoded, ResourceType};

/// Removals of one type that are remembered. Where more resources than this live, as many as they are.
const REMOVALS: usize = 10_000;

/// The session has read less than what is still remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behind;

/// What changed since a revision.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub(super) put: Vec<Arc<Encoded>>,
    pub(super) removed: Vec<Arc<str>>,
    /// `put` is all that there is of the type.
    pub(super) whole: bool,
}

#[derive(Debug)]
pub(super) struct Store {
    ready: bool,
    revision: u64,
    removals: usize,
    tables: [Table; 2],
}

#[derive(Debug, Default)]
struct Table {
    resources: BTreeMap<Arc<str>, Entry>,
    /// Names in `resources` by when they changed.
    changed: BTreeMap<u64, Arc<str>>,
    /// Removed names, and the same by when they were.
    tombstones: HashMap<Arc<str>, u64>,
    removed: BTreeMap<u64, Arc<str>>,
    /// Removals up to here are not remembered.
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

    /// Until this is called nothing is answered: an empty store would tell reconnecting clients that all is
    /// gone.
    pub(super) fn set_ready(&mut self) {
        self.ready = true;
    }

    pub(super) fn ready(&self) -> bool {
        self.ready
    }

    /// Grows with every change.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn len(&self, kind: ResourceType) -> usize {
        self.tables[kind.index()].resources.len()
    }

    /// Whether anything changed.
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

    /// Whether anything changed.
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

    /// Everything that changed after `revision`, oldest change first.
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
