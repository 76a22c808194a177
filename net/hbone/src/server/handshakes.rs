//! Bounds how many clients are about to prove who they are: [`Handshakes`].
//!
//! An honest handshake takes milliseconds. When there are too many, one goes of the crowd that has most under
//! way: the same client at the same workload. Of those the oldest is the least likely to be honest. So
//! whoever holds thousands open keeps nobody else out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::hash::Hash;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::Error;

/// `K` tells crowds apart.
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
    crowds: HashMap<K, BTreeMap<u64, oneshot::Sender<()>>>,
}

impl<K: Clone + Eq + Hash> Handshakes<K> {
    pub(super) fn new(most: usize) -> Self {
        let running = Running { next: 0, count: 0, crowds: HashMap::new() };
        Self { most: most.max(1), running: Mutex::new(running) }
    }

    /// Runs a handshake, which fails if it is the one to go when there is one too many.
    pub(super) async fn run<T>(&self, crowd: K, handshake: impl Future<Output = T>) -> Result<T, Error> {
        let (place, cut) = self.enter(crowd);
        tokio::select! {
            biased;
            done = handshake => { drop(place); Ok(done) }
            _ = cut => Err(Error::TooManyHandshakes),
        }
    }

    fn enter(&self, crowd: K) -> (Place<'_, K>, oneshot::Receiver<()>) {
        let (sender, cut) = oneshot::channel();
        let mut running = self.running.lock();
        if running.count >= self.most {
            running.cut_one();
        }
        let number = running.next;
        running.next += 1;
        running.count += 1;
        running.crowds.entry(crowd.clone()).or_default().insert(number, sender);
        drop(running);
        (Place { handshakes: self, crowd, number }, cut)
    }
}

impl<K: Clone + Eq + Hash> Running<K> {
    /// Looks at every crowd; there are fewer than handshakes.
    fn cut_one(&mut self) {
        let size =
            |(_, crowd): &(&K, &BTreeMap<u64, _>)| (crowd.len(), Reverse(crowd.keys().next().copied()));
        let Some(fullest) = self.crowds.iter().max_by_key(size).map(|(key, _)| key.clone()) else { return };
        let oldest = self.crowds.get(&fullest).and_then(|crowd| crowd.keys().next().copied());
        if let Some(oldest) = oldest {
            self.remove(&fullest, oldest);
        }
    }

    fn remove(&mut self, key: &K, number: u64) {
        let Some(crowd) = self.crowds.get_mut(key) else { return };
        if crowd.remove(&number).is_some() {
            self.count -= 1;
        }
        if crowd.is_empty() {
            self.crowds.remove(key);
        }
    }
}

/// Frees the place when the handshake is over, however it ended.
struct Place<'a, K: Clone + Eq + Hash> {
    handshakes: &'a Handshakes<K>,
    crowd: K,
    number: u64,
}

impl<K: Clone + Eq + Hash> Drop for Place<'_, K> {
    fn drop(&mut self) {
        self.handshakes.running.lock().remove(&self.crowd, self.number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes and goes: never more than allowed, the newcomer always gets in, and nobody is cut while a
        /// crowd is larger than his.
        #[test]
        fn the_largest_crowd_gives_way(steps in vec((0..4_u8, any::<bool>(), any::<prop::sample::Index>()), 0..200)) {
            const MOST: usize = 8;
            let handshakes = Handshakes::new(MOST);
            let mut held: Vec<(u8, Place<'_, u8>, oneshot::Receiver<()>)> = Vec::new();
            for (crowd, leaves, which) in steps {
                if leaves && !held.is_empty() {
                    held.swap_remove(which.index(held.len()));
                }
                let size = |held: &[(u8, Place<'_, u8>, _)], of: u8| held.iter().filter(|it| it.0 == of).count();
                let sizes: Vec<usize> = (0..4).map(|of| size(&held, of)).collect();
                let (place, cut) = handshakes.enter(crowd);
                held.push((crowd, place, cut));
                let cut: Vec<usize> = (0..held.len())
                    .filter(|index| held[*index].2.try_recv() == Err(oneshot::error::TryRecvError::Closed))
                    .collect();
                prop_assert_eq!(cut.len(), usize::from(sizes.iter().sum::<usize>() == MOST));
                for index in cut.into_iter().rev() {
                    let (of, ..) = held.remove(index);
                    prop_assert_eq!(Some(&sizes[usize::from(of)]), sizes.iter().max());
                }
                prop_assert!(held.len() <= MOST);
                prop_assert_eq!(handshakes.running.lock().count, held.len());
            }
            held.clear();
            prop_assert!(handshakes.running.lock().crowds.is_empty());
        }
    }
}
