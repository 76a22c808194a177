//! Which pods of this node are to be enrolled, as a pure state machine: events of the API server and of
//! ztunnel go in, actions come out. It holds no clock: the time is an argument.
//!
//! For every pod it compares the desired state with the present one and takes one step at a time; a step that
//! fails is repeated after a pause, or at the next event about the pod. The order matters: a pod is annotated
//! after it is enrolled, and released only a while after its annotation was removed, when its peers have
//! received the removal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ambit_core::enrolment::{Candidate, DATAPLANE_MODE, Eligibility, Labels};

use super::pod::{PodKey, Seen};
use super::progress::{GRACE, Held, Progress, Wanted};
use super::step::{Action, Outcome};

/// What the state machine receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A pod is new or has changed.
    Pod(PodKey, Seen),
    /// A pod is deleted.
    PodGone(PodKey),
    /// A namespace is new or has changed: its labels.
    Namespace(String, Labels),
    /// A namespace is deleted.
    NamespaceGone(String),
    /// The initial lists of pods and namespaces are complete.
    Listed,
    /// A step has ended.
    Done(PodKey, Outcome),
    /// ztunnel has accepted the snapshot.
    SnapshotTaken,
    /// ztunnel has not accepted the snapshot.
    SnapshotFailed,
}

/// How far the snapshot is: the statement to ztunnel that all pods of this node have been named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Snapshot {
    /// The initial lists are not complete.
    NotListed,
    /// To be sent when every pod has been named.
    Due,
    /// Sent.
    Sent,
    /// Accepted.
    Taken,
}

/// The node's pods.
#[derive(Debug)]
pub(crate) struct State {
    system_namespace: String,
    excluded: BTreeSet<String>,
    pods: BTreeMap<PodKey, Progress>,
    namespaces: BTreeMap<String, Labels>,
    snapshot: Snapshot,
}

/// How many pods are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) pods: usize,
    pub(crate) desired: usize,
    pub(crate) enrolled: usize,
    pub(crate) not_captured: usize,
}

impl State {
    pub(crate) fn new(system_namespace: &str, excluded: impl IntoIterator<Item = String>) -> Self {
        Self {
            system_namespace: system_namespace.to_owned(),
            excluded: excluded.into_iter().collect(),
            pods: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            snapshot: Snapshot::NotListed,
        }
    }

    /// Takes in an event.
    pub(crate) fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Pod(key, seen) => self.pod(key, seen),
            Event::PodGone(key) => {
                if let Some(progress) = self.pods.get_mut(&key) {
                    progress.seen = None;
                    progress.retry_now();
                }
            }
            Event::Namespace(name, labels) => {
                if self.namespaces.get(&name) != Some(&labels) {
                    for (_, progress) in self.pods.iter_mut().filter(|(key, _)| key.namespace == name) {
                        progress.retry_now();
                    }
                    self.namespaces.insert(name, labels);
                }
            }
            Event::NamespaceGone(name) => {
                self.namespaces.remove(&name);
            }
            Event::Listed if self.snapshot == Snapshot::NotListed => self.snapshot = Snapshot::Due,
            Event::Listed => {}
            Event::Done(key, outcome) => self.done(&key, outcome, now),
            Event::SnapshotTaken => self.snapshot = Snapshot::Taken,
            Event::SnapshotFailed => self.snapshot = Snapshot::Due,
        }
    }

    /// The steps that can be taken now. Each is in progress until its outcome is reported.
    pub(crate) fn actions(&mut self, now: Instant) -> Vec<Action> {
        if self.snapshot == Snapshot::NotListed {
            return Vec::new();
        }
        let mut actions = Vec::new();
        let keys: Vec<PodKey> = self.pods.keys().cloned().collect();
        for key in keys {
            let wanted = self.wanted(&key);
            let Some(progress) = self.pods.get_mut(&key) else { continue };
            if progress.busy || progress.not_before.is_some_and(|at| now < at) {
                continue;
            }
            if let Some(action) = progress.step(&key, wanted, now) {
                progress.busy = true;
                actions.push(action);
            }
        }
        self.pods.retain(|_, progress| progress.busy || progress.seen.is_some() || progress.held != Held::No);
        if self.snapshot == Snapshot::Due && self.pods.values().all(|progress| progress.named) {
            self.snapshot = Snapshot::Sent;
            actions.push(Action::Snapshot);
        }
        actions
    }

    /// When [`Self::actions`] may have new steps without another event.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let waiting = self.pods.values().filter(|progress| !progress.busy);
        let times =
            waiting.map(|progress| progress.not_before.max(progress.leaving.map(|since| since + GRACE)));
        times.flatten().filter(|at| *at > now).min()
    }

    pub(crate) fn snapshot_taken(&self) -> bool {
        self.snapshot == Snapshot::Taken
    }

    /// Whether the pod should be in the mesh; pods of other nodes are not known.
    pub(crate) fn desires(&self, key: &PodKey) -> bool {
        self.wanted(key) == Wanted::In
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (key, progress) in self.pods.iter().filter(|(_, progress)| progress.seen.is_some()) {
            let wanted = self.wanted(key);
            counts.pods += 1;
            counts.desired += usize::from(wanted == Wanted::In);
            counts.enrolled += usize::from(wanted == Wanted::In && progress.held == Held::Yes);
            counts.not_captured += usize::from(matches!(wanted, Wanted::Out { reason: Some(_) }));
        }
        counts
    }

    fn pod(&mut self, key: PodKey, seen: Seen) {
        let Some(progress) = self.pods.get_mut(&key) else {
            let held = if seen.redirected { Held::Before } else { Held::No };
            self.pods.insert(key, Progress::new(seen, held));
            return;
        };
        match &progress.seen {
            Some(old) if *old == seen => return,
            Some(old) if old.uid == seen.uid => {}
            // Another pod of the same name: StatefulSets create them.
            _ => {
                let held = if progress.held == Held::No { Held::No } else { Held::Stale };
                let busy = progress.busy;
                *progress = Progress::new(seen, held);
                progress.busy = busy;
                return;
            }
        }
        progress.seen = Some(seen);
        progress.retry_now();
    }

    fn done(&mut self, key: &PodKey, outcome: Outcome, now: Instant) {
        let Some(progress) = self.pods.get_mut(key) else { return };
        progress.busy = false;
        if outcome == Outcome::NotYet {
            progress.named = true;
            // ztunnel was told to keep it, should an earlier agent have enrolled it: it is to be released.
            if progress.held == Held::No {
                progress.held = Held::Before;
            }
        }
        if matches!(outcome, Outcome::Failed | Outcome::NotYet) {
            progress.not_before = Some(now + progress.backoff.pause());
            return;
        }
        progress.retry_now();
        let current = progress.seen.as_mut();
        match outcome {
            Outcome::Enrolled { uid } => {
                let same = current.is_some_and(|seen| seen.uid == uid);
                progress.held = if same { Held::Yes } else { Held::Stale };
                progress.named |= same;
            }
            Outcome::Kept => progress.named = true,
            Outcome::Released => {
                progress.held = Held::No;
                progress.leaving = None;
            }
            Outcome::Redirected { uid, on } => {
                if let Some(seen) = current.filter(|seen| seen.uid == uid) {
                    seen.redirected = on;
                    progress.leaving = (!on).then_some(now);
                }
            }
            Outcome::Marked { uid, reason } => {
                if let Some(seen) = current.filter(|seen| seen.uid == uid) {
                    seen.not_captured = reason;
                }
            }
            Outcome::Failed | Outcome::NotYet => {}
        }
    }

    fn wanted(&self, key: &PodKey) -> Wanted {
        let Some(seen) = self.pods.get(key).and_then(|progress| progress.seen.as_ref()) else {
            return Wanted::Finished;
        };
        let namespace_labels = self.namespaces.get(&key.namespace);
        if seen.finished {
            return Wanted::Finished;
        }
        if namespace_labels.is_none() && !seen.labels.contains_key(DATAPLANE_MODE) {
            return Wanted::Unknown;
        }
        let subject = Candidate {
            namespace: &key.namespace,
            namespace_labels,
            pod_labels: Some(&seen.labels),
            account: seen.account,
            host_network: seen.host_network,
            finished: false,
            system_namespace: &self.system_namespace,
        };
        let answer = subject.evaluate();
        let out = |reason: &str| Wanted::Out { reason: Some(reason.to_owned()) };
        match answer {
            Eligibility::Desired if self.excluded.contains(&key.namespace) => {
                out("its namespace is excluded from capture on this node")
            }
            Eligibility::Desired => Wanted::In,
            other => Wanted::Out { reason: other.not_captured().map(str::to_owned) },
        }
    }
}

#[cfg(test)]
mod tests;
