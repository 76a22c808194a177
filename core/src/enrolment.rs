//! Whether a pod should be enrolled (one rule for the controller, the node agent, the CNI plugin and the
//! CLI), and whether its node captures it already, as its annotation says.
//!
//! The order of an enrolment: a label makes a pod *desired* ([`Candidate::evaluate`]); its node prepares
//! capture and annotates the pod ([`is_redirected`]); only then do peers learn that it speaks HBONE. So no
//! tunnel is opened to a pod that does not accept tunnels yet.
//!
//! The annotations are written under the field manager [`FIELD_MANAGER`].

pub mod exclusion;

use std::collections::BTreeMap;
use std::fmt;

/// The label that enrols a namespace or a pod, or opts a pod out.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// The annotation of a pod whose connections are captured.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// The value of [`REDIRECTION`] on a captured pod.
pub const REDIRECTION_ENABLED: &str = "enabled";

/// The annotation that says why a labelled pod is not captured; on a captured pod ([`REDIRECTION`]), which of
/// its ports are not ([`exclusion::describe`]).
pub const NOT_CAPTURED: &str = "ambit.dev/not-captured";

/// The field manager under which annotations are written. Other meshes write [`REDIRECTION`] too: only
/// annotations that were written by this manager may be removed.
pub const FIELD_MANAGER: &str = "ambit";

/// The annotation of a static pod's object in the API (its mirror). The kubelet makes these objects, for any
/// namespace, and they cannot have a service account; their uid is not the one that the pod's processes have.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// What vouches for a pod's identity on Kubernetes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Account {
    /// Its service account.
    Named,
    /// Nothing: it has no service account.
    #[default]
    Missing,
    /// Nothing: it is a static pod, which a node's kubelet started by itself.
    Static,
}

impl Account {
    /// Of a pod of Kubernetes: its `spec.serviceAccountName` and its annotations.
    pub fn of(service_account: &str, annotations: &Labels) -> Self {
        if annotations.contains_key(MIRROR) {
            Self::Static
        } else if service_account.is_empty() {
            Self::Missing
        } else {
            Self::Named
        }
    }
}

/// Whether the pod has annotations that [`FIELD_MANAGER`] wrote. `managers` are the field managers of the
/// pod's metadata.
pub fn is_annotated_by_us<'a>(
    annotations: Option<&Labels>,
    mut managers: impl Iterator<Item = &'a str>,
) -> bool {
    let any =
        annotations.is_some_and(|all| [REDIRECTION, NOT_CAPTURED].iter().any(|it| all.contains_key(*it)));
    any && managers.any(|name| name == FIELD_MANAGER)
}

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// The attributes of a pod that decide whether it should be enrolled.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// `metadata.namespace`.
    pub namespace: &'a str,
    /// The labels of the namespace; `None` if it is not known.
    pub namespace_labels: Option<&'a Labels>,
    /// `metadata.labels`.
    pub pod_labels: Option<&'a Labels>,
    /// What vouches for its identity.
    pub account: Account,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Whether `status.phase` is `Succeeded` or `Failed`.
    pub finished: bool,
    /// The namespace of the mesh's own pods.
    pub system_namespace: &'a str,
}

/// Whether a pod should be enrolled, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Eligibility {
    /// It should.
    Desired,
    /// Neither it nor its namespace is labelled.
    NotLabelled,
    /// Its own label opts it out, or its namespace's does.
    OptedOut,
    /// It has its node's network namespace: its connections cannot be distinguished from the node's.
    HostNetwork,
    /// It is one of the mesh's own pods.
    System,
    /// It is a static pod: no service account vouches for an identity.
    StaticPod,
    /// It has no service account, so it has no identity.
    NoServiceAccount,
    /// It has finished, and its address may be another pod's already.
    Finished,
}

impl Eligibility {
    /// Whether the pod should be enrolled.
    pub fn is_desired(self) -> bool {
        self == Self::Desired
    }

    /// The value of [`NOT_CAPTURED`], for running pods that are labelled and cannot be enrolled.
    pub fn not_captured(self) -> Option<&'static str> {
        match self {
            Self::HostNetwork => {
                Some("host network: its connections cannot be distinguished from the node's")
            }
            Self::System => Some("the mesh's own pods are not captured"),
            Self::StaticPod => Some("static pod: it has no service account, so it has no identity"),
            Self::NoServiceAccount => Some("it has no service account, so it has no identity"),
            Self::Desired | Self::NotLabelled | Self::OptedOut | Self::Finished => None,
        }
    }
}

/// As logs show it.
impl fmt::Display for Eligibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Desired => "labelled",
            Self::NotLabelled => "not labelled",
            Self::OptedOut => "opted out",
            Self::HostNetwork => "host network",
            Self::System => "the mesh's own",
            Self::StaticPod => "static pod",
            Self::NoServiceAccount => "no service account",
            Self::Finished => "finished",
        })
    }
}

impl Candidate<'_> {
    /// Applies the rule. A pod's label takes precedence over its namespace's; unknown values are ignored.
    pub fn evaluate(&self) -> Eligibility {
        let enrols = |labels: Option<&Labels>| mode(labels?.get(DATAPLANE_MODE)?);
        match enrols(self.pod_labels).or_else(|| enrols(self.namespace_labels)) {
            None => Eligibility::NotLabelled,
            Some(false) => Eligibility::OptedOut,
            Some(true) if self.finished => Eligibility::Finished,
            Some(true) if self.namespace == self.system_namespace => Eligibility::System,
            Some(true) if self.host_network => Eligibility::HostNetwork,
            Some(true) => match self.account {
                Account::Named => Eligibility::Desired,
                Account::Missing => Eligibility::NoServiceAccount,
                Account::Static => Eligibility::StaticPod,
            },
        }
    }
}

/// Whether the pod's node captures it, by its annotation.
pub fn is_redirected(annotations: &Labels) -> bool {
    annotations.get(REDIRECTION).is_some_and(|value| value == REDIRECTION_ENABLED)
}

/// Whether a value of [`DATAPLANE_MODE`] enrols, if the value is known.
pub(crate) fn mode(value: &str) -> Option<bool> {
    match value {
        "ambient" | "ambit" => Some(true),
        "none" => Some(false),
        _ => None,
    }
}
