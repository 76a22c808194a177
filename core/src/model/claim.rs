//! By what right an object has its addresses, and for whom: [`Origin`].

use std::collections::BTreeSet;
use std::sync::Arc;

/// By what right a workload or service has its addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Kubernetes has given them out: a pod's, a Service's.
    #[default]
    Kubernetes,
    /// An EndpointSlice lists them. That is no claim: anyone may list an address.
    Listed,
    /// A ServiceEntry or WorkloadEntry names them.
    Entry(Claim),
}

impl Origin {
    /// The claim, if an entry makes one.
    pub fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Entry(claim) => Some(claim),
            Self::Kubernetes | Self::Listed => None,
        }
    }

    /// Whether it is Kubernetes' own object.
    pub fn is_kubernetes(&self) -> bool {
        *self == Self::Kubernetes
    }
}

/// What an entry claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// When the entry was created, in seconds since 1970, where that is known.
    pub created: Option<i64>,
    /// Whose connections it concerns.
    pub exported: Exported,
}

/// The namespaces that see an entry (`exportTo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Exported {
    /// All of them.
    #[default]
    Everywhere,
    /// These; perhaps none, and perhaps not the entry's own.
    To(BTreeSet<Arc<str>>),
}

impl Exported {
    /// Whether clients of this namespace see the entry.
    pub fn reaches(&self, namespace: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::To(namespaces) => namespaces.contains(namespace),
        }
    }
}
