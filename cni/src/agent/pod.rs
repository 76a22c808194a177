//! One pod of the node: what is known of it, and the next step from what is to what should be.

use std::time::{Duration, Instant};

use super::state::{Action, PodKey, Seen};

/// Between the end of a pod's annotation and its release: peers hear of it and stop sending tunnels.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// Whether ztunnel has the pod, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    No,
    /// Handed over by this process.
    Yes,
    /// Annotated by an earlier life of this process, or by the plugin.
    Before,
    /// It has one of this name, which this pod has replaced.
    Stale,
}

/// What should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    In,
    Out {
        why: Option<String>,
    },
    /// It has finished: nothing of it is to stay with ztunnel, and nobody reads its annotations.
    Finished,
    /// Its namespace is not known yet.
    Unknown,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// `None`: gone.
    pub(crate) seen: Option<Seen>,
    pub(crate) held: Held,
    /// It has been named to ztunnel (or need not be), as far as this process can.
    pub(crate) named: bool,
    /// A step is under way.
    pub(crate) busy: bool,
    /// Steps that failed in a row.
    pub(crate) failures: u32,
    pub(crate) not_before: Option<Instant>,
    /// Since when peers are told that it takes no tunnels.
    pub(crate) leaving: Option<Instant>,
}

impl Entry {
    pub(crate) fn new(seen: Seen, held: Held) -> Self {
        Self {
            seen: Some(seen),
            held,
            named: false,
            busy: false,
            failures: 0,
            not_before: None,
            leaving: None,
        }
    }

    /// Something has changed: what failed may succeed now.
    pub(crate) fn heard(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    /// The next step towards what should be.
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
                    let why = seen.excluded.clone();
                    Some(Action::Mark { key, uid, why })
                } else {
                    None
                }
            }
            Wanted::Out { why } => {
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
                let marked = seen.not_captured == why;
                if self.held != Held::No {
                    let since = *self.leaving.get_or_insert(now);
                    if now >= since + GRACE {
                        return Some(Action::Release { key });
                    }
                }
                (!marked).then_some(Action::Mark { key, uid, why })
            }
        }
    }
}
