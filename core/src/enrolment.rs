//! Whether a pod should be in the mesh: one rule for all who ask (the controller, the node's agent, the CNI
//! plugin), and whether it already is, as its annotation says.
//!
//! The order of an enrolment: a label makes a pod *desired* ([`Subject::judge`]); its node prepares it and
//! annotates it ([`is_redirected`]); only then is it announced to its peers. So nobody tunnels to a pod that
//! does not take tunnels yet.

pub mod exclusion;

use std::collections::BTreeMap;
use std::fmt;

/// The label that enrols a namespace or a pod, or keeps a pod out.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// The annotation of a pod whose connections are captured.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// The value of [`REDIRECTION`] that counts.
pub const REDIRECTION_ENABLED: &str = "enabled";

/// The annotation that says why a pod is not captured although it is labelled; on a pod that is captured
/// ([`REDIRECTION`]), which of its ports are not ([`exclusion::describe`]).
pub const NOT_CAPTURED: &str = "ambit.dev/not-captured";

/// Under which name annotations are written to the API server (its field manager). [`REDIRECTION`] is also
/// other meshes': only what was written under this name is ours to take off.
pub const FIELD_MANAGER: &str = "ambit";

/// Whether a pod's annotations are ours to take off. `managers`: under which names its fields have been
/// written.
pub fn wrote<'a>(annotations: Option<&Labels>, mut managers: impl Iterator<Item = &'a str>) -> bool {
    let any =
        annotations.is_some_and(|all| [REDIRECTION, NOT_CAPTURED].iter().any(|it| all.contains_key(*it)));
    any && managers.any(|name| name == FIELD_MANAGER)
}

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// A pod, as far as the rule looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub namespace: &'a str,
    /// `None`: the namespace is not known, or has none.
    pub namespace_labels: Option<&'a Labels>,
    pub pod_labels: Option<&'a Labels>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `status.phase` is `Succeeded` or `Failed`.
    pub finished: bool,
    /// The namespace of the mesh's own pods.
    pub system_namespace: &'a str,
}

/// Whether a pod should be in the mesh, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It should.
    Desired,
    /// Neither it nor its namespace is labelled.
    NotLabelled,
    /// Its own label keeps it out, or its namespace's does.
    OptedOut,
    /// It has its node's network: there is nothing to tell its connections from the node's.
    HostNetwork,
    /// It is one of the mesh's own.
    System,
    /// It has finished, and its address may already be another's.
    Finished,
}

impl Answer {
    /// Whether the pod should be in the mesh.
    pub fn is_desired(self) -> bool {
        self == Self::Desired
    }

    /// What [`NOT_CAPTURED`] says: only about pods that run, are labelled, and cannot be in the mesh.
    pub fn not_captured(self) -> Option<&'static str> {
        match self {
            Self::HostNetwork => Some("host network: its connections cannot be told from the node's"),
            Self::System => Some("the mesh's own pods are not captured"),
            Self::Desired | Self::NotLabelled | Self::OptedOut | Self::Finished => None,
        }
    }
}

/// For logs.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Desired => "labelled",
            Self::NotLabelled => "not labelled",
            Self::OptedOut => "opted out",
            Self::HostNetwork => "host network",
            Self::System => "the mesh's own",
            Self::Finished => "finished",
        })
    }
}

impl Subject<'_> {
    /// The rule. A pod's label goes before its namespace's; a label with another value says nothing.
    pub fn judge(&self) -> Answer {
        let says = |labels: Option<&Labels>| mode(labels?.get(DATAPLANE_MODE)?);
        match says(self.pod_labels).or_else(|| says(self.namespace_labels)) {
            None => Answer::NotLabelled,
            Some(false) => Answer::OptedOut,
            Some(true) if self.finished => Answer::Finished,
            Some(true) if self.namespace == self.system_namespace => Answer::System,
            Some(true) if self.host_network => Answer::HostNetwork,
            Some(true) => Answer::Desired,
        }
    }
}

/// Whether the pod's node has said that it captures the pod's connections.
pub fn is_redirected(annotations: &Labels) -> bool {
    annotations.get(REDIRECTION).is_some_and(|value| value == REDIRECTION_ENABLED)
}

/// What a value of [`DATAPLANE_MODE`] says, if it says anything that is known.
pub(crate) fn mode(value: &str) -> Option<bool> {
    match value {
        "ambient" | "ambit" => Some(true),
        "none" => Some(false),
        _ => None,
    }
}
