//! Which files to read, and when. A file is taken once two looks, some time apart, found it the same: nobody
//! is in the middle of writing it, and one that vanished did not just give way to its successor. Pure: time
//! and listings come from outside. Way in: [`Tracker::look`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::FileName;

/// What tells two states of a file apart without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    /// Nanoseconds since 1970.
    pub(crate) modified: i128,
    pub(crate) changed: i128,
}

/// What a look finds due.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Settled in a new state: to be read, then [`Tracker::taken`].
    pub(crate) read: Vec<(FileName, Stamp)>,
    /// Settled in being gone.
    pub(crate) gone: Vec<FileName>,
    /// Something has not settled: look again soon.
    pub(crate) again: bool,
}

#[derive(Debug)]
struct Entry {
    /// What the last look found; none if it was not there.
    found: Option<Stamp>,
    since: Duration,
    /// The state that was taken over last; none if there was none.
    taken: Option<Stamp>,
}

/// Remembers what was found and what was taken over.
#[derive(Debug)]
pub(crate) struct Tracker {
    settle: Duration,
    entries: BTreeMap<FileName, Entry>,
}

impl Tracker {
    /// `settle` is how long a file must stay the same.
    pub(crate) fn new(settle: Duration) -> Self {
        Self { settle, entries: BTreeMap::new() }
    }

    /// A file that was known in an earlier life: it is read when it is there, and gone when it is not.
    pub(crate) fn remember(&mut self, name: FileName) {
        self.entries
            .insert(name, Entry { found: None, since: Duration::ZERO, taken: Some(Stamp::default()) });
    }

    /// Takes a listing in. `unreachable` are folders that could not be listed (or files that could not be
    /// examined): what they hold is as it was.
    pub(crate) fn look(
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
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_millis(50);

    fn listing<const N: usize>(files: [(&str, u64); N]) -> BTreeMap<FileName, Stamp> {
        files.into_iter().map(|(name, size)| (name.into(), Stamp { size, ..Stamp::default() })).collect()
    }

    /// Looks, takes what is due, and says it in words.
    fn look<const N: usize>(tracker: &mut Tracker, at: u64, files: [(&str, u64); N]) -> String {
        let due = tracker.look(Duration::from_millis(at), &listing(files), &BTreeSet::new());
        let mut said: Vec<String> =
            due.read.iter().map(|(name, stamp)| format!("read {name}={}", stamp.size)).collect();
        for (name, stamp) in &due.read {
            tracker.taken(name, *stamp);
        }
        said.extend(due.gone.iter().map(|name| format!("gone {name}")));
        if due.again {
            said.push("again".to_owned());
        }
        said.join(", ")
    }

    #[test]
    fn a_file_is_read_when_it_has_settled_and_once() {
        let mut tracker = Tracker::new(SETTLE);
        assert_eq!(look(&mut tracker, 0, [("a", 1)]), "again");
        assert_eq!(look(&mut tracker, 30, [("a", 1)]), "again");
        assert_eq!(look(&mut tracker, 60, [("a", 1)]), "read a=1");
        assert_eq!(look(&mut tracker, 90, [("a", 1)]), "");
        assert_eq!(look(&mut tracker, 9_000, [("a", 1)]), "");
    }

    #[test]
    fn a_file_being_written_waits() {
        let mut tracker = Tracker::new(SETTLE);
        look(&mut tracker, 0, [("a", 9)]);
        look(&mut tracker, 60, [("a", 9)]);
        // Truncated, then written in parts: neither the empty file nor a part is taken.
        assert_eq!(look(&mut tracker, 100, [("a", 0)]), "again");
        assert_eq!(look(&mut tracker, 140, [("a", 4)]), "again");
        assert_eq!(look(&mut tracker, 180, [("a", 8)]), "again");
        assert_eq!(look(&mut tracker, 240, [("a", 8)]), "read a=8");
    }

    #[test]
    fn a_file_replaced_by_unlinking_is_not_gone() {
        let mut tracker = Tracker::new(SETTLE);
        look(&mut tracker, 0, [("a", 1)]);
        look(&mut tracker, 60, [("a", 1)]);
        assert_eq!(look(&mut tracker, 100, []), "again");
        assert_eq!(look(&mut tracker, 120, [("a", 2)]), "again");
        assert_eq!(look(&mut tracker, 200, [("a", 2)]), "read a=2");
    }

    #[test]
    fn a_file_that_stays_away_is_gone_once() {
        let mut tracker = Tracker::new(SETTLE);
        look(&mut tracker, 0, [("a", 1), ("b", 1)]);
        look(&mut tracker, 60, [("a", 1), ("b", 1)]);
        assert_eq!(look(&mut tracker, 100, [("b", 1)]), "again");
        assert_eq!(look(&mut tracker, 160, [("b", 1)]), "gone a");
        assert_eq!(look(&mut tracker, 200, [("b", 1)]), "");
    }

    #[test]
    fn what_came_and_went_between_two_looks_is_forgotten() {
        let mut tracker = Tracker::new(SETTLE);
        assert_eq!(look(&mut tracker, 0, [("a", 1)]), "again");
        assert_eq!(look(&mut tracker, 10, []), "");
        assert!(tracker.entries.is_empty());
    }

    #[test]
    fn a_file_that_changed_while_it_was_read_is_read_again() {
        let mut tracker = Tracker::new(SETTLE);
        tracker.look(Duration::ZERO, &listing([("a", 1)]), &BTreeSet::new());
        let due = tracker.look(SETTLE, &listing([("a", 1)]), &BTreeSet::new());
        assert_eq!(due.read.len(), 1);
        // Not taken: the reader saw another stamp after reading.
        assert_eq!(look(&mut tracker, 60, [("a", 2)]), "again");
        assert_eq!(look(&mut tracker, 120, [("a", 2)]), "read a=2");
    }

    #[test]
    fn files_of_a_folder_that_cannot_be_listed_are_not_gone() {
        let mut tracker = Tracker::new(SETTLE);
        look(&mut tracker, 0, [("x/a", 1), ("xa", 1)]);
        look(&mut tracker, 60, [("x/a", 1), ("xa", 1)]);
        let broken = BTreeSet::from(["x".to_owned()]);
        for at in [100, 200, 300] {
            let due = tracker.look(Duration::from_millis(at), &listing([("xa", 1)]), &broken);
            assert_eq!(due, Due::default());
        }
        let all = BTreeSet::from([String::new()]);
        assert_eq!(tracker.look(Duration::from_millis(400), &listing([]), &all), Due::default());
        assert_eq!(look(&mut tracker, 500, [("xa", 1)]), "again");
        assert_eq!(look(&mut tracker, 600, [("xa", 1)]), "gone x/a");
    }

    #[test]
    fn what_an_earlier_life_knew() {
        let mut tracker = Tracker::new(SETTLE);
        tracker.remember("a".into());
        tracker.remember("b".into());
        assert_eq!(look(&mut tracker, 100, [("b", 1)]), "gone a, again");
        assert_eq!(look(&mut tracker, 200, [("b", 1)]), "read b=1");
    }
}
