//! Who is to be enrolled on this node, as a pure state machine: what the API server and ztunnel say goes in,
//! what is to be done comes out. It holds no clock: the time is an argument.
//!
//! For every pod it compares what should be with what is and takes one step at a time; a step that fails is
//! tried again after a pause or when something is heard of the pod. The order matters: a pod is annotated
//! when it is enrolled, and released only a while after its annotation went, when its peers know.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ambit_core::enrolment::{Answer, DATAPLANE_MODE, Labels, Subject};

use super::pod::{Entry, GRACE, Held, Wanted};

/// Before the first repetition of a step that failed; doubled with each, up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// Names a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PodKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl std::fmt::Display for PodKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What the API says about a pod, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) uid: String,
    /// Only those that the rule reads.
    pub(crate) labels: Labels,
    pub(crate) host_network: bool,
    pub(crate) finished: bool,
    /// Started by the kubelet from a file: the API's object has another uid than the pod's processes.
    pub(crate) mirror: bool,
    /// Annotated as captured.
    pub(crate) redirected: bool,
    /// Annotated as not captured, and why, or as captured but for some ports.
    pub(crate) not_captured: Option<String>,
    /// Which ports it keeps out of capture, in the words of that annotation.
    pub(crate) excluded: Option<String>,
}

/// What is heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Pod(PodKey, Seen),
    PodGone(PodKey),
    Namespace(String, Labels),
    NamespaceGone(String),
    /// All pods and namespaces that there were at the beginning have been named.
    Listed,
    /// A step is over.
    Done(PodKey, Outcome),
    /// ztunnel has taken the snapshot.
    SnapshotTaken,
    /// It has not.
    SnapshotFailed,
}

/// What became of a step for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// ztunnel has the pod of this uid.
    Enrolled {
        uid: String,
    },
    /// It cannot be enrolled yet: no process of it runs, or ztunnel refused it. ztunnel knows that it stays,
    /// if it had it before.
    NotYet,
    /// ztunnel knows that it stays, if it had it.
    Kept,
    Released,
    /// The annotation of the pod with this uid is as it was asked for.
    Redirected {
        uid: String,
        on: bool,
    },
    Marked {
        uid: String,
        why: Option<String>,
    },
    /// Not done; again later.
    Failed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Find the pod's network namespace and have ztunnel enrol it.
    Enrol { key: PodKey, uid: String },
    /// Tell ztunnel that it stays, should it have it.
    Keep { key: PodKey },
    /// Say that it is enrolled.
    Annotate { key: PodKey, uid: String },
    /// No longer say that it is enrolled.
    Unannotate { key: PodKey, uid: String },
    /// Say why it is not captured, or what of it, or no longer.
    Mark { key: PodKey, uid: String, why: Option<String> },
    /// Have ztunnel release it.
    Release { key: PodKey },
    /// All that there was has been named to ztunnel.
    Snapshot,
}

/// Where the snapshot of this process's first view stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Snapshot {
    NotListed,
    Due,
    Asked,
    Taken,
}

/// The node's pods.
#[derive(Debug)]
pub(crate) struct State {
    system_namespace: String,
    excluded: BTreeSet<String>,
    pods: BTreeMap<PodKey, Entry>,
    namespaces: BTreeMap<String, Labels>,
    snapshot: Snapshot,
}

/// How many pods there are of each sort.
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

    /// Takes in what was heard.
    pub(crate) fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Pod(key, seen) => self.pod(key, seen),
            Event::PodGone(key) => {
                if let Some(entry) = self.pods.get_mut(&key) {
                    entry.seen = None;
                    entry.heard();
                }
            }
            Event::Namespace(name, labels) => {
                if self.namespaces.get(&name) != Some(&labels) {
                    for (_, entry) in self.pods.iter_mut().filter(|(key, _)| key.namespace == name) {
                        entry.heard();
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

    /// The steps that can be taken now. Each is under way from here on, until its outcome is heard.
    pub(crate) fn actions(&mut self, now: Instant) -> Vec<Action> {
        if self.snapshot == Snapshot::NotListed {
            return Vec::new();
        }
        let mut actions = Vec::new();
        let keys: Vec<PodKey> = self.pods.keys().cloned().collect();
        for key in keys {
            let wanted = self.wanted(&key);
            let Some(entry) = self.pods.get_mut(&key) else { continue };
            if entry.busy || entry.not_before.is_some_and(|at| now < at) {
                continue;
            }
            if let Some(action) = entry.step(&key, wanted, now) {
                entry.busy = true;
                actions.push(action);
            }
        }
        self.pods.retain(|_, entry| entry.busy || entry.seen.is_some() || entry.held != Held::No);
        if self.snapshot == Snapshot::Due && self.pods.values().all(|entry| entry.named) {
            self.snapshot = Snapshot::Asked;
            actions.push(Action::Snapshot);
        }
        actions
    }

    /// When [`Self::actions`] may have something that it has not now.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let waiting = self.pods.values().filter(|entry| !entry.busy);
        let times = waiting.map(|entry| entry.not_before.max(entry.leaving.map(|since| since + GRACE)));
        times.flatten().filter(|at| *at > now).min()
    }

    pub(crate) fn snapshot_taken(&self) -> bool {
        self.snapshot == Snapshot::Taken
    }

    /// Whether the pod is to be in the mesh; pods of other nodes are not known.
    pub(crate) fn desires(&self, key: &PodKey) -> bool {
        self.wanted(key) == Wanted::In
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (key, entry) in self.pods.iter().filter(|(_, entry)| entry.seen.is_some()) {
            let wanted = self.wanted(key);
            counts.pods += 1;
            counts.desired += usize::from(wanted == Wanted::In);
            counts.enrolled += usize::from(wanted == Wanted::In && entry.held == Held::Yes);
            counts.not_captured += usize::from(matches!(wanted, Wanted::Out { why: Some(_) }));
        }
        counts
    }

    fn pod(&mut self, key: PodKey, seen: Seen) {
        let Some(entry) = self.pods.get_mut(&key) else {
            let held = if seen.redirected { Held::Before } else { Held::No };
            self.pods.insert(key, Entry::new(seen, held));
            return;
        };
        match &entry.seen {
            Some(old) if *old == seen => return,
            Some(old) if old.uid == seen.uid => {}
            // Another pod of the same name, as StatefulSets make them.
            _ => {
                let held = if entry.held == Held::No { Held::No } else { Held::Stale };
                let busy = entry.busy;
                *entry = Entry::new(seen, held);
                entry.busy = busy;
                return;
            }
        }
        entry.seen = Some(seen);
        entry.heard();
    }

    fn done(&mut self, key: &PodKey, outcome: Outcome, now: Instant) {
        let Some(entry) = self.pods.get_mut(key) else { return };
        entry.busy = false;
        entry.named |= outcome == Outcome::NotYet;
        if matches!(outcome, Outcome::Failed | Outcome::NotYet) {
            let pause = FIRST_PAUSE.saturating_mul(1 << entry.failures.min(16)).min(LAST_PAUSE);
            entry.failures = entry.failures.saturating_add(1);
            entry.not_before = Some(now + pause);
            return;
        }
        entry.heard();
        let current = entry.seen.as_mut();
        match outcome {
            Outcome::Enrolled { uid } => {
                let same = current.is_some_and(|seen| seen.uid == uid);
                entry.held = if same { Held::Yes } else { Held::Stale };
                entry.named |= same;
            }
            Outcome::Kept => entry.named = true,
            Outcome::Released => {
                entry.held = Held::No;
                entry.leaving = None;
            }
            Outcome::Redirected { uid, on } => {
                if let Some(seen) = current.filter(|seen| seen.uid == uid) {
                    seen.redirected = on;
                    entry.leaving = (!on).then_some(now);
                }
            }
            Outcome::Marked { uid, why } => {
                if let Some(seen) = current.filter(|seen| seen.uid == uid) {
                    seen.not_captured = why;
                }
            }
            Outcome::Failed | Outcome::NotYet => {}
        }
    }

    fn wanted(&self, key: &PodKey) -> Wanted {
        let Some(seen) = self.pods.get(key).and_then(|entry| entry.seen.as_ref()) else {
            return Wanted::Finished;
        };
        let namespace_labels = self.namespaces.get(&key.namespace);
        if seen.finished {
            return Wanted::Finished;
        }
        if namespace_labels.is_none() && !seen.labels.contains_key(DATAPLANE_MODE) {
            return Wanted::Unknown;
        }
        let subject = Subject {
            namespace: &key.namespace,
            namespace_labels,
            pod_labels: Some(&seen.labels),
            host_network: seen.host_network,
            finished: false,
            system_namespace: &self.system_namespace,
        };
        let answer = subject.judge();
        let out = |why: &str| Wanted::Out { why: Some(why.to_owned()) };
        match answer {
            Answer::Desired if self.excluded.contains(&key.namespace) => {
                out("its namespace is excluded from capture on this node")
            }
            Answer::Desired if seen.mirror => {
                out("static pod: the kubelet started it from a file of its own")
            }
            Answer::Desired => Wanted::In,
            other => Wanted::Out { why: other.not_captured().map(str::to_owned) },
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
