//! The connections and dials of each key: [`Entries`].

use std::collections::HashMap;

use super::key::Key;
use crate::client::Connection;
use crate::client::shared::Slot;

/// `F` is what callers hold that wait for a dial.
pub(super) struct Entries<F> {
    /// Numbers dials, and the connections they made.
    newest: u64,
    entries: HashMap<Key, Entry<F>>,
}

struct Entry<F> {
    connections: Vec<Kept>,
    dialing: Option<(u64, F)>,
}

struct Kept {
    number: u64,
    connection: Connection,
    used: bool,
}

/// A place on a connection.
pub(super) struct Place {
    pub(super) slot: Slot,
    pub(super) connection: Connection,
    /// No tunnel was opened on it before.
    pub(super) first: bool,
}

/// What there is for a key.
pub(super) enum Find<F> {
    Place(Place),
    Dialing(F),
    Nothing,
}

impl<F> Default for Entries<F> {
    fn default() -> Self {
        Self { newest: 0, entries: HashMap::new() }
    }
}

impl<F: Clone> Entries<F> {
    /// A place on a connection with a number above `newer_than`, or a dial that will make one.
    pub(super) fn find(&mut self, key: &Key, newer_than: u64) -> Find<F> {
        let Some(entry) = self.entries.get_mut(key) else { return Find::Nothing };
        for kept in entry.connections.iter_mut().filter(|kept| kept.number > newer_than) {
            if let Some(slot) = kept.connection.reserve() {
                let first = !std::mem::replace(&mut kept.used, true);
                return Find::Place(Place { slot, connection: kept.connection.clone(), first });
            }
        }
        match &entry.dialing {
            Some((_, flight)) => Find::Dialing(flight.clone()),
            None => Find::Nothing,
        }
    }

    /// Records a dial and numbers it.
    pub(super) fn begin(&mut self, key: &Key, flight: F) -> u64 {
        self.newest += 1;
        let entry = self
            .entries
            .entry(key.clone())
            .or_insert_with(|| Entry { connections: Vec::new(), dialing: None });
        entry.dialing = Some((self.newest, flight));
        self.newest
    }

    /// Keeps the connection that the dial made, if it is still wanted.
    pub(super) fn keep(&mut self, key: &Key, number: u64, connection: Connection) -> bool {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.dials(number)) else {
            return false;
        };
        entry.connections.push(Kept { number, connection, used: false });
        true
    }

    /// The dial is over.
    pub(super) fn landed(&mut self, key: &Key, number: u64) {
        if let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.dials(number)) {
            entry.dialing = None;
        }
        self.remove_if_empty(key);
    }

    /// The connection takes no new tunnels.
    pub(super) fn forget(&mut self, key: &Key, number: u64) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.connections.retain(|kept| kept.number != number);
        }
        self.remove_if_empty(key);
    }

    /// Forgets keys, their dials included, and gives back their connections.
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
        let empty = |entry: &Entry<F>| entry.connections.is_empty() && entry.dialing.is_none();
        if self.entries.get(key).is_some_and(empty) {
            self.entries.remove(key);
        }
    }
}

impl<F> Entry<F> {
    fn dials(&self, number: u64) -> bool {
        self.dialing.as_ref().is_some_and(|(dialing, _)| *dialing == number)
    }
}
