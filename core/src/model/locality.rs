//! Where workloads run ([`Locality`]), and how their places are compared ([`LocalityScope`]).

use std::sync::Arc;

/// Where a workload runs. Empty parts are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// From the label `topology.kubernetes.io/region`.
    pub region: Arc<str>,
    /// From the label `topology.kubernetes.io/zone`.
    pub zone: Arc<str>,
    /// From the label `topology.istio.io/subzone`.
    pub subzone: Arc<str>,
}

/// What a routing preference compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalityScope {
    /// [`Locality::region`].
    Region,
    /// [`Locality::zone`].
    Zone,
    /// [`Locality::subzone`].
    Subzone,
    /// The node that the workload runs on.
    Node,
    /// The Kubernetes cluster.
    Cluster,
    /// The network: workloads of one network reach each other's addresses.
    Network,
}
