//! Publishes what a change of the mesh touched, and wakes the sessions if resources differ.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ambit_core::mesh::{Mesh, Touched};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::intake::Turns;
use super::reply::Whole;
use super::store::Store;
use crate::resource::{Encoded, ResourceType};

/// The resources of all clients. Clones share them.
///
/// Clients get no response before the first [`publish`](Self::publish). Publish when all objects have been
/// read, even if there are none: otherwise a restarted controller would remove all resources of its clients.
#[derive(Clone, Debug, Default)]
pub struct Publisher {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    store: RwLock<Store>,
    revision: watch::Sender<u64>,
    counters: Counters,
    whole: Whole,
    turns: Arc<Turns>,
}

/// The counters of a publisher's sessions.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) clients: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) removed: AtomicU64,
    pub(super) acks: AtomicU64,
    pub(super) nacks: AtomicU64,
}

/// A publisher's state and counters, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Open streams.
    pub clients: u64,
    /// Workloads and services.
    pub addresses: u64,
    /// Policies.
    pub authorizations: u64,
    /// Resources sent, to all clients.
    pub sent: u64,
    /// Removals sent, to all clients.
    pub removed: u64,
    /// Responses that clients accepted as a whole.
    pub acks: u64,
    /// Responses of which clients rejected a resource.
    pub nacks: u64,
    /// Streams with a large request that wait for their turn to send it.
    pub waiting: u64,
    /// Streams that were ended because their large request took too long.
    pub refused: u64,
}

impl Publisher {
    /// Without resources.
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes the touched resources of `mesh`, and sends those that differ.
    pub fn publish(&self, mesh: &Mesh, touched: &Touched) {
        // Encodes before locking, so that sessions can read meanwhile.
        let policies: Vec<_> = touched
            .policies
            .iter()
            .map(|key| {
                mesh.policy(key).map_or_else(|| Err(key.to_string()), |p| Ok(Encoded::authorization(p)))
            })
            .collect();
        let workloads = touched
            .workloads
            .iter()
            .map(|uid| mesh.workload(uid).map_or_else(|| Err(uid.to_string()), |w| Ok(Encoded::workload(w))));
        let services = touched
            .services
            .iter()
            .map(|key| mesh.service(key).map_or_else(|| Err(key.to_string()), |s| Ok(Encoded::service(s))));
        let addresses: Vec<_> = workloads.chain(services).collect();

        let routes = touched.routes.iter();
        let routes: Vec<_> = routes
            .map(|key| mesh.routes(key).map_or_else(|| Err(key.to_string()), |r| Ok(Encoded::routes(r))))
            .collect();

        let mut store = self.inner.store.write();
        for (kind, resources) in [
            (ResourceType::Authorization, policies),
            (ResourceType::Routes, routes),
            (ResourceType::Address, addresses),
        ] {
            for resource in resources {
                match resource {
                    Ok(encoded) => store.put(kind, encoded),
                    Err(name) => store.remove(kind, &name),
                };
            }
        }
        let woken = !store.ready() || store.revision() != *self.inner.revision.borrow();
        store.set_ready();
        let revision = store.revision();
        drop(store);
        if woken {
            self.inner.revision.send_replace(revision);
        }
    }

    /// The current state and counters.
    pub fn stats(&self) -> Stats {
        let store = self.inner.store.read();
        let count = |kind| store.len(kind) as u64;
        let counters = &self.inner.counters;
        Stats {
            clients: counters.clients.load(Ordering::Relaxed),
            addresses: count(ResourceType::Address),
            authorizations: count(ResourceType::Authorization),
            sent: counters.sent.load(Ordering::Relaxed),
            removed: counters.removed.load(Ordering::Relaxed),
            acks: counters.acks.load(Ordering::Relaxed),
            nacks: counters.nacks.load(Ordering::Relaxed),
            waiting: self.inner.turns.waiting.load(Ordering::Relaxed),
            refused: self.inner.turns.refused.load(Ordering::Relaxed),
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    pub(super) fn turns(&self) -> &Arc<Turns> {
        &self.inner.turns
    }

    pub(super) fn whole(&self) -> &Whole {
        &self.inner.whole
    }

    /// Wakes at every change.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.inner.revision.subscribe()
    }

    pub(super) fn read<T>(&self, with: impl FnOnce(&Store) -> T) -> T {
        with(&self.inner.store.read())
    }
}
