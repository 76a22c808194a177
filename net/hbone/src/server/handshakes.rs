//! Bounds how many TLS handshakes are under way: [`Handshakes`].
//!
//! An honest handshake takes milliseconds. When there are too many, the oldest handshake of the busiest
//! (client, workload) pair is aborted: of these it is the least likely to be honest. So a client that holds
//! thousands open keeps no other client out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::hash::Hash;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::Error;

/// `K` identifies a group.
#[derive(Debug)]
pub(super) struct Handshakes<K> {
    most: usize,
    running: Mutex<Running<K>>,
}

#[derive(Debug)]
struct Running<K> {
    next: u64,
    count: usize,
    /// Each by age: dropping a sender ends the handshake.
    groups: HashMap<K, BTreeMap<u64, oneshot::Sender<()>>>,
}

impl<K: Clone + Eq + Hash> Handshakes<K> {
    pub(super) fn new(most: usize) -> Self {
        let running = Running { next: 0, count: 0, groups: HashMap::new() };
        Self { most: most.max(1), running: Mutex::new(running) }
    }

    /// Runs a handshake, which fails if it is the one to go when there is one too many.
    pub(super) async fn run<T>(&self, group: K, handshake: impl Future<Output = T>) -> Result<T, Error> {
        let (place, cut) = self.enter(group);
        tokio::select! {
            biased;
            done = handshake => { drop(place); Ok(done) }
            _ = cut => Err(Error::TooManyHandshakes),
        }
    }

    fn enter(&self, group: K) -> (Place<'_, K>, oneshot::Receiver<()>) {
        let (sender, cut) = oneshot::channel();
        let mut running = self.running.lock();
        if running.count >= self.most {
            running.cut_one();
        }
        let number = running.next;
        running.next += 1;
        running.count += 1;
        running.groups.entry(group.clone()).or_default().insert(number, sender);
        drop(running);
        (Place { handshakes: self, group, number }, cut)
    }
}

impl<K: Clone + Eq + Hash> Running<K> {
    /// Looks at every group; there are fewer than handshakes.
    fn cut_one(&mut self) {
        let size =
            |(_, group): &(&K, &BTreeMap<u64, _>)| (group.len(), Reverse(group.keys().next().copied()));
        let Some(fullest) = self.groups.iter().max_by_key(size).map(|(key, _)| key.clone()) else { return };
        let oldest = self.groups.get(&fullest).and_then(|group| group.keys().next().copied());
        if let Some(oldest) = oldest {
            self.remove(&fullest, oldest);
        }
    }

    fn remove(&mut self, key: &K, number: u64) {
        let Some(group) = self.groups.get_mut(key) else { return };
        if group.remove(&number).is_some() {
            self.count -= 1;
        }
        if group.is_empty() {
            self.groups.remove(key);
        }
    }
}

/// Frees the place when the handshake is over, however it ended.
struct Place<'a, K: Clone + Eq + Hash> {
    handshakes: &'a Handshakes<K>,
    group: K,
    number: u64,
}

impl<K: Clone + Eq + Hash> Drop for Place<'_, K> {
    fn drop(&mut self) {
        self.handshakes.running.lock().remove(&self.group, self.number);
    }
}

#[cfg(test)]
mod tests;
