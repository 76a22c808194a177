//! What one pod may take of what the daemon has ([`Shares`]): descriptors, of which every connection needs
//! one or two.
//!
//! A pod may hold as many as are free. So one that takes all it can get holds half, two hold a third each,
//! and there is always room for the next; nobody has to say what a pod will need.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::resource::{Resource, getrlimit};

/// What the daemon keeps for itself: listeners, namespaces, maps, programs, logs, the controller.
const RESERVE: usize = 1024;

/// The daemon's descriptors for connections.
#[derive(Debug)]
pub(crate) struct Shares {
    all: usize,
    used: Arc<AtomicUsize>,
}

/// What one pod holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Share(Arc<AtomicUsize>);

/// Descriptors that a connection holds, given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    used: Arc<AtomicUsize>,
    own: Share,
    count: usize,
}

impl Shares {
    /// Of what the process may have open.
    pub(crate) fn of_descriptors() -> Self {
        // Without an answer the limit that every process has at least.
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        // Never less than half: a daemon with few has to serve somebody.
        Self::new(limit.saturating_sub(RESERVE).max(limit / 2))
    }

    fn new(all: usize) -> Self {
        Self { all, used: Arc::default() }
    }

    /// Takes some for a connection of the pod; none when the pod holds its share.
    pub(crate) fn take(&self, own: &Share, count: usize) -> Option<Held> {
        let used = self.used.fetch_add(count, Ordering::Relaxed);
        let held = own.0.fetch_add(count, Ordering::Relaxed);
        // Gives back what was taken when it is dropped.
        let taken = Held { used: self.used.clone(), own: own.clone(), count };
        (held + count <= self.all.saturating_sub(used)).then_some(taken)
    }
}

impl Held {
    /// Gives back all but some: the connection needs no more.
    pub(crate) fn keep(&mut self, count: usize) {
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
mod tests {
    use super::*;

    fn fill(shares: &Shares, own: &Share, count: usize) -> Vec<Held> {
        std::iter::from_fn(|| shares.take(own, count)).collect()
    }

    #[test]
    fn greedy_pods_leave_room_for_the_next() {
        let shares = Shares::new(1000);
        let pods: Vec<Share> = (0..5).map(|_| Share::default()).collect();
        let held: Vec<_> = pods.iter().map(|pod| fill(&shares, pod, 1)).collect();
        let counts: Vec<usize> = held.iter().map(Vec::len).collect();
        assert_eq!(counts, [500, 250, 125, 63, 31], "each half of what was left, rounded up");
        assert!(shares.take(&Share::default(), 2).is_some());
        drop(held);
        assert_eq!(shares.used.load(Ordering::Relaxed), 0, "everything is given back");
        assert!(pods.iter().all(|pod| pod.0.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn what_is_not_needed_is_given_back() {
        let (shares, pod) = (Shares::new(100), Share::default());
        let mut held = shares.take(&pod, 2).expect("room");
        held.keep(1);
        assert_eq!((shares.used.load(Ordering::Relaxed), pod.0.load(Ordering::Relaxed)), (1, 1));
        held.keep(5);
        drop(held);
        assert_eq!((shares.used.load(Ordering::Relaxed), pod.0.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn a_refused_connection_holds_nothing() {
        let (shares, pod) = (Shares::new(10), Share::default());
        let held = fill(&shares, &pod, 3);
        assert_eq!(held.len(), 2, "a third one would make nine, and four were left");
        assert!(shares.take(&pod, 3).is_none());
        assert_eq!(shares.used.load(Ordering::Relaxed), 6);
    }
}
