//! The connections and dials of each key, and who waits for them: [`Entries`].

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;

use super::key::Key;
use crate::client::Connection;
use crate::client::shared::Slot;

/// How many of those that wait one dial is for: the places that a connection usually has.
const PLACES: usize = 100;
/// Dials for one key at a time.
const DIALS: usize = 4;

/// `F` tells those that wait why there is no place for them.
pub(super) struct Entries<F> {
    /// Numbers dials, and the connections they made.
    newest: u64,
    entries: HashMap<Key, Entry<F>>,
}

struct Entry<F> {
    connections: Vec<Kept>,
    /// The numbers of those under way.
    dials: Vec<u64>,
    waiting: VecDeque<Waiting<F>>,
}

struct Kept {
    number: u64,
    connection: Connection,
    used: bool,
}

struct Waiting<F> {
    newer_than: u64,
    answer: Sender<F>,
}

type Sender<F> = oneshot::Sender<Result<Place, F>>;

/// A place on a connection.
pub(super) struct Place {
    pub(super) slot: Slot,
    pub(super) connection: Connection,
    /// No tunnel was opened on it before.
    pub(super) first: bool,
}

/// Whether a new connection had places for those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// The connection is not kept: its key was retired.
    Unwanted,
    /// For none of them.
    None,
    /// For as many as it has places, or nobody waits.
    Some,
}

impl Kept {
    fn place(&mut self) -> Option<Place> {
        let slot = self.connection.reserve()?;
        let first = !std::mem::replace(&mut self.used, true);
        Some(Place { slot, connection: self.connection.clone(), first })
    }
}

impl<F> Default for Entries<F> {
    fn default() -> Self {
        Self { newest: 0, entries: HashMap::new() }
    }
}

impl<F> Default for Entry<F> {
    fn default() -> Self {
        Self { connections: Vec::new(), dials: Vec::new(), waiting: VecDeque::new() }
    }
}

impl<F> Entries<F> {
    /// A place on a connection with a number above `newer_than`.
    pub(super) fn find(&mut self, key: &Key, newer_than: u64) -> Option<Place> {
        let entry = self.entries.get_mut(key)?;
        entry.connections.iter_mut().filter(|kept| kept.number > newer_than).find_map(Kept::place)
    }

    /// Waits in line for a place on a connection with a number above `newer_than`.
    pub(super) fn wait(&mut self, key: &Key, newer_than: u64) -> oneshot::Receiver<Result<Place, F>> {
        let (answer, waiting) = oneshot::channel();
        let entry = self.entries.entry(key.clone()).or_default();
        entry.waiting.push_back(Waiting { newer_than, answer });
        waiting
    }

    /// Records a dial and numbers it, if those that wait need one more.
    pub(super) fn begin(&mut self, key: &Key) -> Option<u64> {
        let entry = self.entries.get_mut(key)?;
        let enough = entry.waiting.len().div_ceil(PLACES).min(DIALS);
        (entry.dials.len() < enough).then(|| {
            self.newest += 1;
            entry.dials.push(self.newest);
            self.newest
        })
    }

    /// Keeps the connection that the dial made, if it is still wanted, and gives its places to those that
    /// wait longest.
    pub(super) fn keep(&mut self, key: &Key, number: u64, connection: Connection) -> Served {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.dials.contains(&number)) else {
            return Served::Unwanted;
        };
        entry.dials.retain(|dial| *dial != number);
        let mut kept = Kept { number, connection, used: false };
        let (mut served, mut later) = (Served::Some, VecDeque::new());
        while let Some(waiting) = entry.waiting.pop_front() {
            if waiting.answer.is_closed() {
                continue;
            }
            if waiting.newer_than >= number {
                later.push_back(waiting);
                continue;
            }
            let Some(place) = kept.place() else {
                served = if kept.used { Served::Some } else { Served::None };
                entry.waiting.push_front(waiting);
                break;
            };
            // If it has gone meanwhile, so has its place.
            let _gone = waiting.answer.send(Ok(place));
        }
        later.append(&mut entry.waiting);
        entry.waiting = later;
        entry.connections.push(kept);
        served
    }

    /// Nobody waits any more: these did.
    pub(super) fn give_up(&mut self, key: &Key) -> Vec<Sender<F>> {
        let waiting = self.entries.get_mut(key).map(|entry| std::mem::take(&mut entry.waiting));
        waiting.into_iter().flatten().map(|waiting| waiting.answer).collect()
    }

    /// The dial is over. If it failed and was the last, nobody waits any more: these did.
    pub(super) fn landed(&mut self, key: &Key, number: u64, failed: bool) -> Vec<Sender<F>> {
        let mut waiting = Vec::new();
        if let Some(entry) = self.entries.get_mut(key) {
            let own = entry.dials.contains(&number);
            entry.dials.retain(|dial| *dial != number);
            if own && failed && entry.dials.is_empty() {
                waiting = self.give_up(key);
            }
        }
        self.remove_if_empty(key);
        waiting
    }

    /// The connection takes no new tunnels.
    pub(super) fn forget(&mut self, key: &Key, number: u64) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.connections.retain(|kept| kept.number != number);
        }
        self.remove_if_empty(key);
    }

    /// Forgets keys, their dials and those that wait included, and gives back their connections.
    pub(super) fn take(&mut self, which: impl Fn(&Key) -> bool) -> Vec<Connection> {
        self.entries
            .extract_if(|key, _| which(key))
            .flat_map(|(_, entry)| entry.connections)
            .map(|kept| kept.connection)
            .collect()
    }

    /// The number of the newest connection there is for the key. A dial under way will have a higher one.
    pub(super) fn newest(&self, key: &Key) -> u64 {
        let entry = self.entries.get(key);
        entry.and_then(|entry| entry.connections.last()).map_or(0, |kept| kept.number)
    }

    pub(super) fn connections(&self) -> usize {
        self.entries.values().map(|entry| entry.connections.len()).sum()
    }

    fn remove_if_empty(&mut self, key: &Key) {
        let empty = |entry: &Entry<F>| {
            entry.connections.is_empty() && entry.dials.is_empty() && entry.waiting.is_empty()
        };
        if self.entries.get(key).is_some_and(empty) {
            self.entries.remove(key);
        }
    }
}
