//! From the folder to clients, one pass at a time: list, read settled files, derive, apply, publish, report.
//!
//! Entry points: [`Reconciler::new`], [`Reconciler::begin`] (returns when everything has been published
//! once), then [`Reconciler::pass`] whenever there may be changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ambit_core::derive::{Object, ObjectEvent};
use ambit_core::mesh::Touched;

use super::catalog::{Catalog, FileChange, Problem, Verdict, kind_name};
use super::folder::{self, Content, FolderId, Listing};
use super::programmed::Programmed;
use super::saved::Saved;
use super::tracker::Tracker;
use crate::pipeline::Pipeline;
use crate::shared::Status;
use crate::state;

/// How long a file must stay the same before it is read.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two passes while some file has not settled.
pub(crate) const AGAIN: Duration = Duration::from_millis(25);
/// How long files may take to settle at the start.
const START_DEADLINE: Duration = Duration::from_secs(5);

/// Why the reconciler cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to list the objects in {}: {reason}", path.display())]
    List { path: PathBuf, reason: String },
    #[error(transparent)]
    State(#[from] state::Error),
}

/// The result of a pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    /// Some file has not settled: another pass is due after [`AGAIN`].
    pub(crate) again: bool,
    /// The listed folder; none if it is missing.
    pub(crate) folder: Option<FolderId>,
}

/// The state between the folder and the clients.
#[derive(Debug)]
pub(crate) struct Reconciler {
    root: PathBuf,
    started: Instant,
    tracker: Tracker,
    catalog: Catalog,
    saved: Saved,
    pipeline: Pipeline,
    programmed: Programmed,
}

impl Reconciler {
    pub(crate) fn new(root: PathBuf, saved: PathBuf, mut pipeline: Pipeline) -> Result<Self, Error> {
        // Beside the copies, which are found by their ending.
        let programmed = Programmed::load(saved.with_file_name("programmed.json"))?;
        pipeline.remember_programmed(programmed.known());
        Ok(Self {
            root,
            started: Instant::now(),
            tracker: Tracker::new(SETTLE),
            catalog: Catalog::new(),
            saved: Saved::open(saved)?,
            pipeline,
            programmed,
        })
    }

    /// The folder of objects.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Reads all files and publishes them as one state. Until then no client may be served: it would take
    /// missing objects for deleted.
    pub(crate) fn begin(&mut self) -> Result<(), Error> {
        for (file, objects) in self.saved.load()? {
            self.catalog.restore(&file, objects);
            self.tracker.remember(file);
        }
        // Saved versions come first: if the files' present versions are rejected, they stay in force.
        let restored: Vec<_> = self.catalog.objects().map(put).collect();
        self.pipeline.derive(restored);
        let mut listing = folder::list(&self.root);
        if let Some(reason) = listing.unreachable.get("") {
            return Err(Error::List { path: self.root.clone(), reason: reason.clone() });
        }
        let begun = Instant::now();
        while self.read_settled(&listing).0 && begun.elapsed() < START_DEADLINE {
            thread::sleep(AGAIN);
            listing = folder::list(&self.root);
        }
        self.pipeline.publish_all();
        self.report(listing);
        Ok(())
    }

    /// One pass.
    pub(crate) fn pass(&mut self) -> Pass {
        let listing = folder::list(&self.root);
        let (again, touched) = self.read_settled(&listing);
        if !touched.is_empty() {
            self.pipeline.publish(&touched);
        }
        let folder = listing.folder;
        self.report(listing);
        Pass { again, folder }
    }

    /// Reads the files that have settled. Returns whether another pass is due soon, and what changed.
    fn read_settled(&mut self, listing: &Listing) -> (bool, Touched) {
        let due = self.tracker.update(self.started.elapsed(), &listing.files, &listing.unreachable());
        let mut again = due.again;
        let mut changes: Vec<FileChange> =
            due.gone.into_iter().map(|file| FileChange::Gone { file }).collect();
        for (file, stamp) in due.read {
            let change = match folder::read(&self.root, &file, stamp) {
                Content::Text(text) => FileChange::Text { file: file.clone(), text },
                Content::Unreadable(reason) => FileChange::Unreadable { file: file.clone(), reason },
                Content::Changed => {
                    again = true;
                    continue;
                }
            };
            self.tracker.taken(&file, stamp);
            changes.push(change);
        }
        if changes.is_empty() {
            return (again, Touched::default());
        }
        let step = self.catalog.step(changes);
        let touched = self.pipeline.derive(step.events).touched;
        self.programmed.save(&self.pipeline.programmed());
        self.saved.apply(step.save, &self.pipeline.refused());
        (again, touched)
    }

    /// Reports new problems: in the log, in the metrics, in `/debug`.
    fn report(&self, listing: Listing) {
        let old = self.pipeline.shared.status.load();
        let problems = self.catalog.problems();
        problems.difference(&old.problems).for_each(log_problem);
        for (folder, error) in &listing.unreachable {
            if !old.unreachable.contains_key(folder) {
                let path = self.root.join(folder);
                tracing::error!(folder = %path.display(), error, "failed to list a folder; its objects stay");
            }
        }
        let status = Status {
            objects: self.catalog.objects().fold(BTreeMap::new(), |mut counts, object| {
                *counts.entry(kind_name(&object.key())).or_default() += 1;
                counts
            }),
            files: listing.files.len(),
            unreachable: listing.unreachable,
            problems,
            conditions: self.pipeline.messages(),
        };
        self.pipeline.shared.status.store(Arc::new(status));
    }
}

fn put(object: &Object) -> ObjectEvent {
    ObjectEvent::Put(Box::new(object.clone()))
}

fn log_problem(problem: &Problem) {
    let Problem { file, place, object, field, message: error, earlier_version_in_force, .. } = problem;
    let place = place.as_deref().unwrap_or_default();
    let object = object.as_deref().unwrap_or_default();
    let field = field.as_deref().unwrap_or_default();
    match problem.verdict {
        Verdict::Ignored => tracing::info!(%file, place, object, reason = error, "object ignored"),
        Verdict::Unreadable => tracing::error!(%file, error, earlier_version_in_force, "file rejected"),
        Verdict::Rejected | Verdict::Duplicate => {
            tracing::error!(%file, place, object, field, error, earlier_version_in_force, "object rejected");
        }
    }
}
