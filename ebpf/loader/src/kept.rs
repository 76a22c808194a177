//! Maps whose contents the daemon alone decides: [`Kept`] remembers what it wrote, and compares the kernel's
//! entries with that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::os::fd::{AsFd, BorrowedFd};

use bytemuck::Pod;
use parking_lot::Mutex;

use crate::Error;
use crate::difference::{Difference, Found};
use crate::map::{Inserted, Map};
use crate::pins::Pins;

/// The differences between what should be in a map and what is. `same` compares the values of an entry.
pub(crate) fn differences<K: Ord + Copy, V: Copy>(
    should: &BTreeMap<K, V>,
    is: &BTreeMap<K, V>,
    same: impl Fn(&K, &V, &V) -> bool,
) -> Vec<(K, Found<V>)> {
    let wrong = should.iter().filter_map(|(key, wanted)| match is.get(key) {
        None => Some((*key, Found::Missing)),
        Some(value) if !same(key, wanted, value) => Some((*key, Found::Changed(*value))),
        Some(_) => None,
    });
    let foreign = is
        .iter()
        .filter(|(key, _)| !should.contains_key(key))
        .map(|(key, value)| (*key, Found::Foreign(*value)));
    wrong.chain(foreign).collect()
}

/// A map with what this daemon wrote to it.
#[derive(Debug)]
pub(crate) struct Kept<K, V> {
    map: Map<K, V>,
    state: Mutex<State<K, V>>,
}

#[derive(Debug)]
struct State<K, V> {
    should: BTreeMap<K, V>,
    /// Foreign entries of the last look. One that is still there in the next is removed: another daemon of
    /// the instance may have written it a moment before this one learns why.
    foreign: BTreeSet<K>,
}

impl<K: Pod + Ord + Debug, V: Pod + PartialEq + Debug> Kept<K, V> {
    /// Opens a pinned map, with what an earlier daemon left in it.
    pub(crate) fn open(pins: &Pins, name: &'static str) -> Result<Self, Error> {
        let map = Map::open(pins, name)?;
        let should = map.entries()?.into_iter().collect();
        Ok(Self { map, state: Mutex::new(State { should, foreign: BTreeSet::new() }) })
    }

    /// The entry's value in the kernel.
    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, Error> {
        self.map.get(key)
    }

    /// The keys in the kernel.
    pub(crate) fn keys(&self) -> Result<BTreeSet<K>, Error> {
        self.map.keys()
    }

    /// The entries in the kernel.
    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        self.map.entries()
    }

    /// Its name and number of entries in the kernel.
    pub(crate) fn occupancy(&self) -> Result<(&'static str, usize), Error> {
        self.map.occupancy()
    }

    /// Writes an entry.
    pub(crate) fn put(&self, key: &K, value: &V) -> Result<(), Error> {
        let mut state = self.state.lock();
        self.map.put(key, value)?;
        state.should.insert(*key, *value);
        Ok(())
    }

    /// Writes an entry unless there is one.
    pub(crate) fn put_new(&self, key: &K, value: &V) -> Result<(), Error> {
        let mut state = self.state.lock();
        self.map.put_new(key, value)?;
        if let Some(held) = self.map.get(key)? {
            state.should.insert(*key, held);
        }
        Ok(())
    }

    /// Writes an entry unless there is one, and returns what happened.
    pub(crate) fn insert(&self, key: &K, value: &V) -> Result<Inserted, Error> {
        let mut state = self.state.lock();
        let inserted = self.map.insert(key, value)?;
        match inserted {
            Inserted::New => drop(state.should.insert(*key, *value)),
            Inserted::Exists => {
                if let Some(held) = self.map.get(key)? {
                    state.should.insert(*key, held);
                }
            }
            Inserted::Full => {}
        }
        Ok(inserted)
    }

    /// Replaces an entry, and returns whether there was one.
    pub(crate) fn replace(&self, key: &K, value: &V) -> Result<bool, Error> {
        let mut state = self.state.lock();
        let replaced = self.map.replace(key, value)?;
        if replaced {
            state.should.insert(*key, *value);
        }
        Ok(replaced)
    }

    /// Removes an entry, if there is one.
    pub(crate) fn remove(&self, key: &K) -> Result<(), Error> {
        self.take(key).map(drop)
    }

    /// Removes an entry, and returns whether there was one.
    pub(crate) fn take(&self, key: &K) -> Result<bool, Error> {
        let mut state = self.state.lock();
        // From here on it should not be there, whether or not it can be removed now.
        state.should.remove(key);
        self.map.take(key)
    }

    /// Puts right what differs in the kernel, and adds it to `found`. `same` compares an entry's wanted value
    /// with the kernel's; `value` makes the value that is written again.
    pub(crate) fn put_right(
        &self,
        same: impl Fn(&K, &V, &V) -> bool,
        value: impl Fn(&K, &V) -> Result<V, Error>,
        found: &mut Vec<Difference>,
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        let is: BTreeMap<K, V> = self.map.entries()?.into_iter().collect();
        let mut foreign = BTreeSet::new();
        let different = differences(&state.should, &is, same);
        // A value that may differ, because another daemon writes it too, is kept as it was last seen.
        let keys: BTreeSet<K> = different.iter().map(|(key, _)| *key).collect();
        for (key, wanted) in state.should.iter_mut().filter(|(key, _)| !keys.contains(key)) {
            if let Some(seen) = is.get(key) {
                *wanted = *seen;
            }
        }
        for (key, difference) in different {
            if let Found::Foreign(_) = difference {
                if !state.foreign.contains(&key) {
                    foreign.insert(key);
                    continue;
                }
                self.map.remove(&key)?;
            } else if let Some(wanted) = state.should.get(&key).copied() {
                let written = value(&key, &wanted)?;
                self.map.put(&key, &written)?;
                state.should.insert(key, written);
            }
            found.push(Difference::entry(self.map.name(), &key, &difference));
        }
        state.foreign = foreign;
        Ok(())
    }
}

impl<K, V> Kept<K, V> {
    /// The map's name and descriptor.
    pub(crate) fn pinned(&self) -> (&'static str, BorrowedFd<'_>) {
        (self.map.name(), self.map.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_found() {
        let map = |entries: &[(u32, u64)]| entries.iter().copied().collect::<BTreeMap<_, _>>();
        let rows = [
            ("the same", map(&[(1, 10), (2, 20)]), map(&[(1, 10), (2, 20)]), vec![]),
            ("missing", map(&[(1, 10), (2, 20)]), map(&[(2, 20)]), vec![(1, Found::Missing)]),
            ("changed", map(&[(1, 10)]), map(&[(1, 11)]), vec![(1, Found::Changed(11))]),
            ("foreign", map(&[(1, 10)]), map(&[(1, 10), (3, 30)]), vec![(3, Found::Foreign(30))]),
            (
                "everything gone",
                map(&[(1, 10), (2, 20)]),
                map(&[]),
                vec![(1, Found::Missing), (2, Found::Missing)],
            ),
            ("a value that may differ", map(&[(7, 10)]), map(&[(7, 11)]), vec![]),
        ];
        for (name, should, is, expected) in rows {
            let found = differences(&should, &is, |key, wanted, value| *key == 7 || wanted == value);
            assert_eq!(found, expected, "{name}");
        }
    }
}
