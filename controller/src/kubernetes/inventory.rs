//! Lists and watches → object events and problems: a pure state machine.
//!
//! - Nothing comes out before every kind has been listed once: to clients, what is not there would be gone.
//! - What a later list does not hold is deleted when that list is complete.
//! - A version that is rejected keeps its object's last good one.
//! - A kind that turns out not to be installed keeps the objects it had for a while: an API server that has
//!   just started may not know all of its kinds, and a policy must not vanish by that.
//!
//! Way in: [`Inventory::hear`], then [`Inventory::take`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ambit_core::derive::{Kind, ObjectEvent, ObjectKey};
use ambit_crd::Mistake;

use super::item::{KINDS, Seen};
use super::watch::Heard;
use crate::objects::catalog::{Problem, Verdict, kind_name};

/// How long objects stay of a kind that is said not to be installed.
const ABSENCE: Duration = Duration::from_mins(1);

/// One kind.
#[derive(Debug, Default)]
struct Shelf {
    /// It has been listed once, or is not installed.
    known: bool,
    /// The names and whether a version of it is in force.
    objects: BTreeMap<ObjectKey, bool>,
    /// What the list under way has brought.
    listing: Option<BTreeSet<ObjectKey>>,
    absent_since: Option<Instant>,
    trouble: Option<String>,
}

/// The names of all objects, and what is wrong with some.
#[derive(Debug)]
pub(crate) struct Inventory {
    shelves: BTreeMap<Kind, Shelf>,
    rejected: BTreeMap<ObjectKey, Vec<Mistake>>,
    events: Vec<ObjectEvent>,
    problems_changed: bool,
    begun: bool,
}

impl Inventory {
    pub(crate) fn new() -> Self {
        Self {
            shelves: KINDS.iter().map(|kind| (*kind, Shelf::default())).collect(),
            rejected: BTreeMap::new(),
            events: Vec::new(),
            problems_changed: false,
            begun: false,
        }
    }

    /// Takes in what a watch said.
    pub(crate) fn hear(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Begin(kind) => self.shelf(kind).listing = Some(BTreeSet::new()),
            Heard::Listed(seen) => {
                if let Some(listing) = &mut self.shelf(seen.key.kind).listing {
                    listing.insert(seen.key.clone());
                }
                self.put(*seen);
            }
            Heard::Complete(kind) => {
                let shelf = self.shelf(kind);
                (shelf.known, shelf.absent_since) = (true, None);
                let listed = shelf.listing.take().unwrap_or_default();
                let gone: Vec<_> =
                    shelf.objects.keys().filter(|key| !listed.contains(key)).cloned().collect();
                self.delete_all(gone);
            }
            Heard::Put(seen) => self.put(*seen),
            Heard::Gone(key) => self.delete(key),
            Heard::Absent(kind) => self.absent(kind, now),
            Heard::Trouble(kind, reason) => self.shelf(kind).trouble = reason,
        }
    }

    /// The events that are due. The first time they are everything there is.
    pub(crate) fn take(&mut self) -> Option<Vec<ObjectEvent>> {
        self.begun = self.begun || self.shelves.values().all(|shelf| shelf.known);
        self.begun.then(|| std::mem::take(&mut self.events))
    }

    /// The kinds that have not been listed yet.
    pub(crate) fn missing(&self) -> Vec<String> {
        let missing = self.shelves.iter().filter(|(_, shelf)| !shelf.known);
        missing.map(|(kind, _)| kind.to_string()).collect()
    }

    /// How many objects of each kind are in force.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, usize> {
        let shelves = self.shelves.iter().filter(|(_, shelf)| !shelf.objects.is_empty());
        shelves
            .map(|(kind, shelf)| {
                let name = ObjectKey { kind: *kind, namespace: String::new(), name: String::new() };
                (kind_name(&name), shelf.objects.values().filter(|in_force| **in_force).count())
            })
            .collect()
    }

    /// The kinds whose watch does not work, and why.
    pub(crate) fn troubles(&self) -> BTreeMap<String, String> {
        let shelves = self.shelves.iter();
        shelves.filter_map(|(kind, shelf)| Some((kind.to_string(), shelf.trouble.clone()?))).collect()
    }

    /// Whether [`Self::problems`] has changed since this was asked last.
    pub(crate) fn problems_changed(&mut self) -> bool {
        std::mem::take(&mut self.problems_changed)
    }

    /// Everything that is rejected.
    pub(crate) fn problems(&self) -> BTreeSet<Problem> {
        let problems = self.rejected.iter().flat_map(|(key, mistakes)| {
            let in_force = self.shelves.get(&key.kind).and_then(|shelf| shelf.objects.get(key));
            let in_force = in_force.copied().unwrap_or_default();
            mistakes.iter().map(move |mistake| Problem {
                file: "".into(),
                place: None,
                object: Some(key.to_string()),
                kind: kind_name(key),
                field: (!mistake.field.is_empty()).then(|| mistake.field.clone()),
                verdict: Verdict::Rejected,
                message: mistake.message.clone(),
                earlier_version_in_force: in_force,
            })
        });
        problems.collect()
    }

    fn shelf(&mut self, kind: Kind) -> &mut Shelf {
        self.shelves.entry(kind).or_default()
    }

    fn put(&mut self, seen: Seen) {
        let Seen { key, read, .. } = seen;
        let in_force = self.shelf(key.kind).objects.entry(key.clone()).or_default();
        match read {
            Ok(object) => {
                *in_force = true;
                self.problems_changed |= self.rejected.remove(&key).is_some();
                self.events.push(ObjectEvent::Put(object));
            }
            Err(mistakes) => {
                self.problems_changed |= self.rejected.insert(key, mistakes.clone()) != Some(mistakes);
            }
        }
    }

    fn delete(&mut self, key: ObjectKey) {
        self.problems_changed |= self.rejected.remove(&key).is_some();
        if self.shelf(key.kind).objects.remove(&key) == Some(true) {
            self.events.push(ObjectEvent::Delete(key));
        }
    }

    fn delete_all(&mut self, keys: Vec<ObjectKey>) {
        for key in keys {
            self.delete(key);
        }
    }

    fn absent(&mut self, kind: Kind, now: Instant) {
        let shelf = self.shelf(kind);
        shelf.listing = None;
        let since = *shelf.absent_since.get_or_insert(now);
        if shelf.known && now.duration_since(since) < ABSENCE {
            return;
        }
        shelf.known = true;
        let gone: Vec<_> = shelf.objects.keys().cloned().collect();
        self.delete_all(gone);
    }
}
#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
