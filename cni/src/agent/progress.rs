//! One pod of the node: its present state, and the next step to the desired one.

use std::time::{Duration, Instant};

use ambit_kube::retry::Backoff;

use super::pod::{PodKey, Seen};
use super::step::Action;

/// Between the removal of a pod's annotation and its release: peers receive the removal and open no more
/// tunnels.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// The pauses after a step that failed.
const RETRY: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));

/// Whether ztunnel has the pod, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// No.
    No,
    /// Enrolled by this process.
    Yes,
    /// Perhaps: annotated before this process started, or by the plugin, or not to be enrolled yet.
    Before,
    /// It has an earlier pod of the same name.
    Stale,
}

/// The desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// In the mesh.
    In,
    /// Not in the mesh; the reason, if the pod is labelled.
    Out { reason: Option<String> },
    /// Finished: to be released, whatever its annotations say.
    Finished,
    /// Its namespace is not known yet.
    Unknown,
}

/// One pod of the node.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    /// As the API shows it; `None`: deleted.
    pub(crate) seen: Option<Seen>,
    pub(crate) held: Held,
    /// It has been named to ztunnel, or need not be.
    pub(crate) named: bool,
    /// A step is in progress.
    pub(crate) busy: bool,
    /// After steps that failed in a row.
    pub(crate) backoff: Backoff,
    /// No step before this time.
    pub(crate) not_before: Option<Instant>,
    /// When its annotation was removed.
    pub(crate) leaving: Option<Instant>,
}

impl Progress {
    pub(crate) fn new(seen: Seen, held: Held) -> Self {
        Self {
            seen: Some(seen),
            held,
            named: false,
            busy: false,
            backoff: RETRY,
            not_before: None,
            leaving: None,
        }
    }

    /// Something has changed: a step that failed may succeed now.
    pub(crate) fn retry_now(&mut self) {
        self.backoff.reset();
        self.not_before = None;
    }

    /// The next step to the desired state.
    pub(crate) fn step(&mut self, key: &PodKey, wanted: Wanted, now: Instant) -> Option<Action> {
        let key = key.clone();
        let Some(seen) = &self.seen else {
            self.named = true;
            return (self.held != Held::No).then_some(Action::Release { key });
        };
        let uid = seen.uid.clone();
        match wanted {
            Wanted::Unknown => None,
            Wanted::Finished => {
                self.named = true;
                (self.held != Held::No).then_some(Action::Release { key })
            }
            Wanted::In => {
                self.leaving = None;
                if self.held != Held::Yes {
                    Some(Action::Enrol { key, uid })
                } else if !seen.redirected {
                    Some(Action::Annotate { key, uid })
                } else if seen.not_captured != seen.excluded {
                    let reason = seen.excluded.clone();
                    Some(Action::Mark { key, uid, reason })
                } else {
                    None
                }
            }
            Wanted::Out { reason } => {
                if self.held == Held::Before && !self.named {
                    return Some(Action::Keep { key });
                }
                self.named = true;
                if seen.redirected {
                    return Some(Action::Unannotate { key, uid });
                }
                if self.held == Held::Stale {
                    return Some(Action::Release { key });
                }
                let marked = seen.not_captured == reason;
                if self.held != Held::No {
                    let since = *self.leaving.get_or_insert(now);
                    if now >= since + GRACE {
                        return Some(Action::Release { key });
                    }
                }
                (!marked).then_some(Action::Mark { key, uid, reason })
            }
        }
    }
}
