//! Which files to read, and when. A file is read once two listings, some time apart, show the same state:
//! then it is not being written, and a missing one is not being replaced. Pure: time and listings are
//! arguments. Entry point: [`Tracker::update`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::FileName;

/// Distinguishes two states of a file without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    /// Nanoseconds since 1970.
    pub(crate) modified: i128,
    pub(crate) changed: i128,
}

/// The files that are due.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Settled in a new state: to be read, then [`Tracker::taken`].
    pub(crate) read: Vec<(FileName, Stamp)>,
    /// Settled as deleted.
    pub(crate) gone: Vec<FileName>,
    /// Some file has not settled: list again soon.
    pub(crate) again: bool,
}

#[derive(Debug)]
struct Entry {
    /// The state in the last listing; none if it was missing.
    found: Option<Stamp>,
    since: Duration,
    /// The state that was read last; none if it was not read yet.
    taken: Option<Stamp>,
}

/// The last listed and the last read state of every file.
#[derive(Debug)]
pub(crate) struct Tracker {
    settle: Duration,
    entries: BTreeMap<FileName, Entry>,
}

impl Tracker {
    /// `settle`: how long a file must stay the same.
    pub(crate) fn new(settle: Duration) -> Self {
        Self { settle, entries: BTreeMap::new() }
    }

    /// Adds a file that was known before a restart: it is read if it exists, and reported as gone if it does
    /// not.
    pub(crate) fn remember(&mut self, name: FileName) {
        self.entries
            .insert(name, Entry { found: None, since: Duration::ZERO, taken: Some(Stamp::default()) });
    }

    /// Takes in a listing. `unreachable`: folders that could not be listed (or files without metadata); their
    /// files count as unchanged.
    pub(crate) fn update(
        &mut self,
        now: Duration,
        listing: &BTreeMap<FileName, Stamp>,
        unreachable: &BTreeSet<String>,
    ) -> Due {
        let mut due = Due::default();
        for name in listing.keys() {
            if !self.entries.contains_key(name) {
                let found = listing.get(name).copied();
                self.entries.insert(name.clone(), Entry { found, since: now, taken: None });
            }
        }
        self.entries.retain(|name, entry| {
            let found = listing.get(name).copied();
            if found.is_none() && within(name, unreachable) {
                return true;
            }
            if entry.found != found {
                (entry.found, entry.since) = (found, now);
            }
            if entry.found == entry.taken {
                return entry.found.is_some();
            }
            if now.saturating_sub(entry.since) < self.settle {
                due.again = true;
                return true;
            }
            match entry.found {
                Some(stamp) => due.read.push((name.clone(), stamp)),
                None => due.gone.push(name.clone()),
            }
            entry.found.is_some()
        });
        due
    }

    /// The file was read in this state.
    pub(crate) fn taken(&mut self, name: &FileName, stamp: Stamp) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.taken = Some(stamp);
        }
    }
}

fn within(name: &str, folders: &BTreeSet<String>) -> bool {
    folders.iter().any(|folder| {
        let rest = name.strip_prefix(folder.as_str());
        folder.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

#[cfg(test)]
mod tests;
