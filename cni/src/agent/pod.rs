//! A pod as the API shows it.

use std::fmt;

use ambit_core::enrolment::{Account, Labels};

/// Names a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PodKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is read of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) uid: String,
    /// Only those that the enrolment rule reads.
    pub(crate) labels: Labels,
    pub(crate) host_network: bool,
    pub(crate) finished: bool,
    /// What vouches for its identity.
    pub(crate) account: Account,
    /// Annotated as captured.
    pub(crate) redirected: bool,
    /// The annotation that says why it is not captured, or which of its ports are not.
    pub(crate) not_captured: Option<String>,
    /// What that annotation has to say about the ports that the pod excludes from capture.
    pub(crate) excluded: Option<String>,
}
