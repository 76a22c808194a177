//! Files → objects: a pure state machine.
//!
//! - A rejected document leaves its object's last good version in force; one without a readable name leaves
//!   every object of the file in force that is not in the new text. A policy without a good version closes
//!   its scope (docs/decisions/277).
//! - An object in two files comes from the first by name, but a current version precedes a last good one.
//! - Files that change together (a rename, a move between files) are one step: no object disappears in
//!   between.
//!
//! Entry point: [`Catalog::step`].

use std::collections::{BTreeMap, BTreeSet};

use ambit_core::derive::{Object, ObjectEvent, ObjectKey};
use ambit_crd::{Document, Outcome, Position};
use serde::Serialize;
use serde_json::Value;

use super::FileName;

/// A change of a file.
#[derive(Debug)]
pub(crate) enum FileChange {
    /// Its new text.
    Text { file: FileName, text: String },
    /// It cannot be read.
    Unreadable { file: FileName, reason: String },
    /// It is deleted.
    Gone { file: FileName },
}

/// The results of a step.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) events: Vec<ObjectEvent>,
    pub(crate) save: Vec<Save>,
}

/// What to save of a file for the next start.
#[derive(Debug, PartialEq)]
pub(crate) enum Save {
    /// Its accepted objects as written, and those whose earlier version stays in force.
    Keep { file: FileName, accepted: Vec<(ObjectKey, Value)>, stale: BTreeSet<ObjectKey> },
    /// Nothing: it is deleted.
    Drop { file: FileName },
}

/// A problem of a file or of an object in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Problem {
    /// Empty for objects that come from no file.
    #[serde(serialize_with = "as_text", skip_serializing_if = "is_nothing")]
    pub(crate) file: FileName,
    /// `line 12, items[3]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) place: Option<String>,
    /// `AuthorizationPolicy shop/cart`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) object: Option<String>,
    /// The kind, for metrics.
    #[serde(skip)]
    pub(crate) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    pub(crate) verdict: Verdict,
    pub(crate) message: String,
    /// Whether an earlier version of it is in force.
    pub(crate) earlier_version_in_force: bool,
}

fn is_nothing(name: &FileName) -> bool {
    name.is_empty()
}

fn as_text<S: serde::Serializer>(name: &FileName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name)
}

/// The kind of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// The whole file cannot be read.
    Unreadable,
    /// A document has mistakes.
    Rejected,
    /// The object is defined elsewhere already.
    Duplicate,
    /// Not a kind that Ambit reads.
    Ignored,
}

#[derive(Debug)]
struct Held {
    object: Object,
    /// Not the file's present version, but its last good one.
    stale: bool,
    /// Stands for a policy with mistakes of which there is no good version: it closes the policy's scope.
    closed: bool,
}

#[derive(Debug, Default)]
struct File {
    objects: BTreeMap<ObjectKey, Held>,
    problems: Vec<Problem>,
}

/// All files and their objects.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    files: BTreeMap<FileName, File>,
    holders: BTreeMap<ObjectKey, BTreeSet<FileName>>,
}

impl Catalog {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds the objects that were saved of a file before a restart, until the file itself is read.
    pub(crate) fn restore(&mut self, file: &FileName, objects: Vec<Object>) {
        let objects = objects
            .into_iter()
            .map(|object| (object.key(), Held { object, stale: true, closed: false }))
            .collect();
        self.replace(file, Some(File { objects, problems: Vec::new() }));
    }

    /// Applies the changes as one step.
    pub(crate) fn step(&mut self, changes: Vec<FileChange>) -> Step {
        let mut step = Step::default();
        let mut before: BTreeMap<ObjectKey, Option<Object>> = BTreeMap::new();
        for change in changes {
            let (file, next) = self.read(change, &mut step.save);
            let old = self.files.get(&file).into_iter().flat_map(|file| file.objects.keys());
            let new = next.iter().flat_map(|file| file.objects.keys());
            for key in old.chain(new) {
                if !before.contains_key(key) {
                    before.insert(key.clone(), self.object(key).cloned());
                }
            }
            self.replace(&file, next);
        }
        for (key, old) in before {
            match self.object(&key) {
                Some(new) if Some(new) == old.as_ref() => {}
                Some(new) => step.events.push(ObjectEvent::Put(Box::new(new.clone()))),
                None if old.is_some() => step.events.push(ObjectEvent::Delete(key)),
                None => {}
            }
        }
        step
    }

    /// Every object in force.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.holders.keys().filter_map(|key| self.object(key))
    }

    /// All problems, in the order of the files.
    pub(crate) fn problems(&self) -> BTreeSet<Problem> {
        let mut found: BTreeSet<Problem> =
            self.files.values().flat_map(|file| file.problems.iter().cloned()).collect();
        for (key, holders) in self.holders.iter().filter(|(_, holders)| holders.len() > 1) {
            let Some(winner) = self.winner(key) else { continue };
            for file in holders.iter().filter(|file| *file != winner) {
                // Last good versions of a bad file are reported with that file.
                if self.held(file, key).is_some_and(|held| !held.stale) {
                    found.insert(duplicate(file, None, key, format!("already defined in {winner}")));
                }
            }
        }
        found
    }

    fn held(&self, file: &FileName, key: &ObjectKey) -> Option<&Held> {
        self.files.get(file)?.objects.get(key)
    }

    fn winner(&self, key: &ObjectKey) -> Option<&FileName> {
        self.holders.get(key)?.iter().min_by_key(|file| self.held(file, key).is_none_or(|held| held.stale))
    }

    fn object(&self, key: &ObjectKey) -> Option<&Object> {
        let held = self.held(self.winner(key)?, key)?;
        Some(&held.object)
    }

    fn replace(&mut self, name: &FileName, next: Option<File>) {
        if let Some(old) = self.files.remove(name) {
            for key in old.objects.into_keys() {
                if let Some(holders) = self.holders.get_mut(&key) {
                    holders.remove(name);
                    if holders.is_empty() {
                        self.holders.remove(&key);
                    }
                }
            }
        }
        let Some(next) = next else { return };
        for key in next.objects.keys() {
            self.holders.entry(key.clone()).or_default().insert(name.clone());
        }
        self.files.insert(name.clone(), next);
    }

    /// The file's next state, and what to save of it.
    fn read(&self, change: FileChange, save: &mut Vec<Save>) -> (FileName, Option<File>) {
        match change {
            FileChange::Gone { file } => {
                save.push(Save::Drop { file: file.clone() });
                (file, None)
            }
            FileChange::Unreadable { file, reason } => {
                let mut next = File { objects: self.earlier(&file, |_| true), problems: Vec::new() };
                next.problems.push(Problem {
                    file: file.clone(),
                    place: None,
                    object: None,
                    kind: "",
                    field: None,
                    verdict: Verdict::Unreadable,
                    message: reason,
                    earlier_version_in_force: next.objects.values().any(|held| !held.closed),
                });
                (file, Some(next))
            }
            FileChange::Text { file, text } => {
                let mut reading = Reading::default();
                for document in ambit_crd::parse(&text) {
                    reading.document(&file, document);
                }
                let mut kept = self.earlier(&file, |key| {
                    !reading.objects.contains_key(key) && (reading.unnamed || reading.rejected.contains(key))
                });
                kept.retain(|key, held| !(held.closed && reading.rejected.contains(key)));
                for (key, object) in std::mem::take(&mut reading.closed) {
                    if !reading.objects.contains_key(&key) {
                        kept.entry(key).or_insert(Held { object, stale: true, closed: true });
                    }
                }
                let stale =
                    kept.iter().filter(|(_, held)| !held.closed).map(|(key, _)| key.clone()).collect();
                reading.settle(&stale);
                save.push(Save::Keep { file: file.clone(), accepted: reading.sources, stale });
                let mut objects = reading.objects;
                objects.extend(kept);
                (file, Some(File { objects, problems: reading.problems }))
            }
        }
    }

    /// The objects of a file that stay in force as last good versions.
    fn earlier(&self, file: &FileName, stays: impl Fn(&ObjectKey) -> bool) -> BTreeMap<ObjectKey, Held> {
        let objects = self.files.get(file).into_iter().flat_map(|file| &file.objects);
        objects
            .filter(|(key, _)| stays(key))
            .map(|(key, held)| {
                let object = held.object.clone();
                (key.clone(), Held { object, stale: true, closed: held.closed })
            })
            .collect()
    }
}

/// A text while it is read.
#[derive(Default)]
struct Reading {
    objects: BTreeMap<ObjectKey, Held>,
    sources: Vec<(ObjectKey, Value)>,
    rejected: BTreeSet<ObjectKey>,
    /// What stands for rejected policies.
    closed: BTreeMap<ObjectKey, Object>,
    /// A rejected document has no readable name.
    unnamed: bool,
    problems: Vec<Problem>,
}

impl Reading {
    fn document(&mut self, file: &FileName, Document { position: place, outcome }: Document) {
        match outcome {
            Outcome::Accepted { object, source } => {
                let key = object.key();
                if self.objects.contains_key(&key) {
                    let message = "defined twice in this file; the first counts".to_owned();
                    self.problems.push(duplicate(file, Some(place), &key, message));
                } else {
                    self.objects.insert(key.clone(), Held { object: *object, stale: false, closed: false });
                    self.sources.push((key, source));
                }
            }
            Outcome::Ignored { what } => self.problems.push(Problem {
                file: file.clone(),
                place: Some(place.to_string()),
                object: Some(what),
                kind: "",
                field: None,
                verdict: Verdict::Ignored,
                message: "not a kind that Ambit reads".to_owned(),
                earlier_version_in_force: false,
            }),
            Outcome::Rejected { object, mistakes, closed } => {
                self.closed.extend(closed.map(|closed| (closed.key(), *closed)));
                for mistake in mistakes {
                    self.problems.push(Problem {
                        file: file.clone(),
                        place: Some(place.to_string()),
                        object: object.as_ref().map(ToString::to_string),
                        kind: object.as_ref().map_or("", |key| kind_name(key)),
                        field: (!mistake.field.is_empty()).then_some(mistake.field),
                        verdict: Verdict::Rejected,
                        message: mistake.message,
                        earlier_version_in_force: false,
                    });
                }
                match object {
                    Some(key) => drop(self.rejected.insert(key)),
                    None => self.unnamed = true,
                }
            }
        }
    }

    /// Sets for rejected objects whether an earlier version stays in force.
    fn settle(&mut self, stale: &BTreeSet<ObjectKey>) {
        let names: BTreeSet<String> = stale.iter().map(ToString::to_string).collect();
        for problem in self.problems.iter_mut().filter(|problem| problem.verdict == Verdict::Rejected) {
            problem.earlier_version_in_force = match &problem.object {
                Some(name) => names.contains(name),
                None => !names.is_empty(),
            };
        }
    }
}

fn duplicate(file: &FileName, place: Option<Position>, key: &ObjectKey, message: String) -> Problem {
    Problem {
        file: file.clone(),
        place: place.map(|place| place.to_string()),
        object: Some(key.to_string()),
        kind: kind_name(key),
        field: None,
        verdict: Verdict::Duplicate,
        message,
        earlier_version_in_force: false,
    }
}

/// The kind, as in metrics.
pub(crate) fn kind_name(key: &ObjectKey) -> &'static str {
    key.kind.name()
}

#[cfg(test)]
mod tests;
