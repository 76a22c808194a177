//! How many of the process's file descriptors one workload's connections may hold ([`Shares`]). Every
//! connection needs one or two.
//!
//! A workload may hold as many as are free. So one that takes all it can get holds half, two hold a third
//! each, and there is always room for the next; no limit has to be configured.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::resource::{Resource, getrlimit};

/// Kept for everything else: listeners, namespaces, maps, programs, logs, the controller.
const RESERVE: usize = 1024;

/// The process's descriptors for connections.
#[derive(Debug)]
pub struct Shares {
    all: usize,
    used: Arc<AtomicUsize>,
}

/// What one workload holds.
#[derive(Clone, Debug, Default)]
pub struct Share(Arc<AtomicUsize>);

/// Descriptors that a connection holds, given back when dropped.
#[derive(Debug)]
pub struct Held {
    used: Arc<AtomicUsize>,
    own: Share,
    count: usize,
}

impl Shares {
    /// From the process's limit of open descriptors.
    pub fn of_descriptors() -> Self {
        // If the limit cannot be read: the usual soft limit.
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        // Never less than half, so that a process with a low limit still serves.
        Self::new(limit.saturating_sub(RESERVE).max(limit / 2))
    }

    fn new(all: usize) -> Self {
        Self { all, used: Arc::default() }
    }

    /// Takes `count` for a connection of the workload; none when it holds its share.
    pub fn take(&self, own: &Share, count: usize) -> Option<Held> {
        let used = self.used.fetch_add(count, Ordering::Relaxed);
        let held = own.0.fetch_add(count, Ordering::Relaxed);
        // Dropping it gives back what was taken.
        let taken = Held { used: self.used.clone(), own: own.clone(), count };
        (held + count <= self.all.saturating_sub(used)).then_some(taken)
    }
}

impl Held {
    /// Gives back all but `count`: the connection needs no more.
    pub fn keep(&mut self, count: usize) {
        let back = self.count.saturating_sub(count);
        self.give_back(back);
    }

    fn give_back(&mut self, count: usize) {
        self.count -= count;
        self.used.fetch_sub(count, Ordering::Relaxed);
        self.own.0.fetch_sub(count, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back(self.count);
    }
}

#[cfg(test)]
mod tests;
