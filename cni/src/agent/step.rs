//! One step for one pod: [`Action`] asks for it, [`Outcome`] reports it.

use super::pod::PodKey;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Find the pod's network namespace and have ztunnel enrol it.
    Enrol { key: PodKey, uid: String },
    /// Keep the pod in ztunnel, should it have it.
    Keep { key: PodKey },
    /// Annotate the pod as captured.
    Annotate { key: PodKey, uid: String },
    /// Remove the annotation that the pod is captured.
    Unannotate { key: PodKey, uid: String },
    /// Annotate why the pod, or a part of its ports, is not captured; or remove that annotation.
    Mark { key: PodKey, uid: String, reason: Option<String> },
    /// Have ztunnel release the pod.
    Release { key: PodKey },
    /// Report to ztunnel that all pods have been named.
    Snapshot,
}

/// The result of a step for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// ztunnel has enrolled the pod with this uid.
    Enrolled { uid: String },
    /// The pod cannot be enrolled yet: no process of it runs, or ztunnel refused it. If ztunnel had it
    /// before, it keeps it.
    NotYet,
    /// ztunnel keeps the pod, if it had it.
    Kept,
    /// ztunnel has released the pod.
    Released,
    /// The annotation of the pod with this uid says whether it is captured.
    Redirected { uid: String, on: bool },
    /// The annotation of the pod with this uid gives this reason.
    Marked { uid: String, reason: Option<String> },
    /// Not done; to be tried again later.
    Failed,
}
