//! Lists and watches → object events and problems: a pure state machine.
//!
//! - There are no events before every kind has been listed once: clients would take missing objects for
//!   deleted.
//! - Objects that a later list lacks are deleted when that list is complete.
//! - A rejected version leaves its object's last good version in force. Not so a policy's: that closes its
//!   scope, since no replica that starts later knows the last good one (docs/decisions/277).
//! - A kind that is no longer installed keeps its objects for a while: an API server that has just started
//!   may not know all of its kinds, and no policy must disappear by that.
//!
//! Entry points: [`Inventory::handle`], then [`Inventory::take`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ambit_core::derive::{Kind, ObjectEvent, ObjectKey};
use ambit_crd::Mistake;

use super::item::{KINDS, Rejected, Seen};
use super::watch::WatchEvent;
use crate::objects::catalog::{Problem, Verdict, kind_name};

/// How long objects of a kind stay that is reported as not installed.
const ABSENCE: Duration = Duration::from_mins(1);

/// The objects of one kind.
#[derive(Debug, Default)]
struct KindState {
    /// It has been listed once, or is not installed.
    known: bool,
    /// The objects, and whether a version of each is in force.
    objects: BTreeMap<ObjectKey, bool>,
    /// How many are.
    in_force: usize,
    /// The objects of the list in progress.
    listing: Option<BTreeSet<ObjectKey>>,
    absent_since: Option<Instant>,
    error: Option<String>,
}

/// The keys of all objects, and the mistakes of rejected ones.
#[derive(Debug)]
pub(crate) struct Inventory {
    kinds: BTreeMap<Kind, KindState>,
    rejected: BTreeMap<ObjectKey, Vec<Mistake>>,
    /// Rejected policies, which close their scope: no version of them is in force.
    closed: BTreeSet<ObjectKey>,
    events: Vec<ObjectEvent>,
    problems_changed: bool,
    begun: bool,
}

impl Inventory {
    pub(crate) fn new() -> Self {
        Self {
            kinds: KINDS.iter().map(|kind| (*kind, KindState::default())).collect(),
            rejected: BTreeMap::new(),
            closed: BTreeSet::new(),
            events: Vec::new(),
            problems_changed: false,
            begun: false,
        }
    }

    /// Takes in an event of a watch.
    pub(crate) fn handle(&mut self, event: WatchEvent, now: Instant) {
        match event {
            WatchEvent::Begin(kind) => self.state(kind).listing = Some(BTreeSet::new()),
            WatchEvent::Listed(seen) => {
                if let Some(listing) = &mut self.state(seen.key.kind).listing {
                    listing.insert(seen.key.clone());
                }
                self.put(*seen);
            }
            WatchEvent::Complete(kind) => {
                let state = self.state(kind);
                (state.known, state.absent_since) = (true, None);
                let listed = state.listing.take().unwrap_or_default();
                let gone: Vec<_> =
                    state.objects.keys().filter(|key| !listed.contains(key)).cloned().collect();
                self.delete_all(gone);
            }
            WatchEvent::Put(seen) => self.put(*seen),
            WatchEvent::Gone(key) => self.delete(key),
            WatchEvent::Absent(kind) => self.absent(kind, now),
            WatchEvent::Error(kind, error) => self.state(kind).error = error,
        }
    }

    /// The events since the last call; the first time, all objects.
    pub(crate) fn take(&mut self) -> Option<Vec<ObjectEvent>> {
        self.begun = self.begun || self.kinds.values().all(|state| state.known);
        self.begun.then(|| std::mem::take(&mut self.events))
    }

    /// The kinds that have not been listed yet, and why if that is known.
    pub(crate) fn missing(&self) -> Vec<String> {
        let missing = self.kinds.iter().filter(|(_, state)| !state.known);
        let named = missing.map(|(kind, state)| match &state.error {
            Some(error) => format!("{kind} ({error})"),
            None => kind.to_string(),
        });
        named.collect()
    }

    /// How many objects of each kind are in force.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, usize> {
        let kinds = self.kinds.iter().filter(|(_, state)| !state.objects.is_empty());
        kinds
            .map(|(kind, state)| {
                let name = ObjectKey { kind: *kind, namespace: String::new(), name: String::new() };
                (kind_name(&name), state.in_force)
            })
            .collect()
    }

    /// The kinds whose watch fails, and why.
    pub(crate) fn watch_errors(&self) -> BTreeMap<String, String> {
        let kinds = self.kinds.iter();
        kinds.filter_map(|(kind, state)| Some((kind.to_string(), state.error.clone()?))).collect()
    }

    /// Whether [`Self::problems`] has changed since the last call.
    pub(crate) fn problems_changed(&mut self) -> bool {
        std::mem::take(&mut self.problems_changed)
    }

    /// All rejected objects.
    pub(crate) fn problems(&self) -> BTreeSet<Problem> {
        let problems = self.rejected.iter().flat_map(|(key, mistakes)| {
            let in_force = self.kinds.get(&key.kind).and_then(|state| state.objects.get(key));
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

    fn state(&mut self, kind: Kind) -> &mut KindState {
        self.kinds.entry(kind).or_default()
    }

    fn put(&mut self, seen: Seen) {
        let Seen { key, read, .. } = seen;
        match read {
            Ok(object) => {
                let state = self.state(key.kind);
                if state.objects.insert(key.clone(), true) != Some(true) {
                    state.in_force += 1;
                }
                self.closed.remove(&key);
                self.problems_changed |= self.rejected.remove(&key).is_some();
                self.events.push(ObjectEvent::Put(object));
            }
            Err(Rejected { mistakes, closed }) => {
                let state = self.state(key.kind);
                let in_force = state.objects.entry(key.clone()).or_default();
                if let Some(closed) = closed {
                    if std::mem::take(in_force) {
                        state.in_force -= 1;
                    }
                    self.closed.insert(key.clone());
                    self.events.push(ObjectEvent::Put(closed));
                }
                self.problems_changed |= self.rejected.insert(key, mistakes.clone()) != Some(mistakes);
            }
        }
    }

    fn delete(&mut self, key: ObjectKey) {
        self.problems_changed |= self.rejected.remove(&key).is_some();
        let closed = self.closed.remove(&key);
        let state = self.state(key.kind);
        let in_force = state.objects.remove(&key) == Some(true);
        if in_force {
            state.in_force -= 1;
        }
        if in_force || closed {
            self.events.push(ObjectEvent::Delete(key));
        }
    }

    fn delete_all(&mut self, keys: Vec<ObjectKey>) {
        for key in keys {
            self.delete(key);
        }
    }

    fn absent(&mut self, kind: Kind, now: Instant) {
        let state = self.state(kind);
        state.listing = None;
        let since = *state.absent_since.get_or_insert(now);
        if state.known && now.duration_since(since) < ABSENCE {
            return;
        }
        state.known = true;
        let gone: Vec<_> = state.objects.keys().cloned().collect();
        self.delete_all(gone);
    }
}

#[cfg(test)]
mod tests;
