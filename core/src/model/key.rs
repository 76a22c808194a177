//! The names of resources as on the wire: [`WorkloadUid`], [`ServiceKey`], [`PolicyKey`].

use std::fmt;
use std::sync::Arc;

/// The name of a workload: `<cluster>//Pod/<namespace>/<name>` for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(pub Arc<str>);

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a service: `<namespace>/<hostname>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The namespace of the Service or ServiceEntry.
    pub namespace: Arc<str>,
    /// Fully qualified, for example `cart.shop.svc.cluster.local`.
    pub hostname: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// The name of a policy: `<namespace>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    /// The policy's namespace; the root namespace for mesh-wide policies.
    pub namespace: Arc<str>,
    /// Unique in the namespace.
    pub name: Arc<str>,
}

impl PolicyKey {
    /// The prefix of the names of policies that are derived from PeerAuthentications. Kubernetes names have
    /// no `_`, so the prefixed names are unique.
    const CONVERTED: &'static str = "converted_peer_authentication_";

    /// The key of the policy that is derived from a PeerAuthentication.
    pub fn of_peer_authentication(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: format!("{}{name}", Self::CONVERTED).into() }
    }

    /// Whether the policy is derived from a PeerAuthentication.
    pub fn is_of_peer_authentication(&self) -> bool {
        self.name.starts_with(Self::CONVERTED)
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
