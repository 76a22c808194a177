//! Nodes and [`Pod`]s, with the ports that containers declare.

use std::net::IpAddr;

use super::key::Metadata;

/// A node: its labels give its pods' locality.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `metadata`.
    pub metadata: Metadata,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec.serviceAccountName`; what an empty one means is in `Settings::identity_by_account`.
    pub service_account: String,
    /// `spec.nodeName`; empty while it is not scheduled.
    pub node: String,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// The controlling owner reference.
    pub owner: Option<Owner>,
    /// Ports of its containers (and of sidecars: init containers that restart).
    pub ports: Vec<ContainerPort>,
    /// Ports of HTTP, gRPC and TCP probes.
    pub probes: Vec<PortRef>,
    /// `status.phase`.
    pub phase: Phase,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// Whether the condition `Ready` is true.
    pub ready: bool,
    /// Whether it has a `deletionTimestamp`.
    pub terminating: bool,
}

impl Pod {
    /// Whether all its containers have ended for good.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }
}

/// The controlling owner of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// For example `ReplicaSet`.
    pub kind: String,
    /// The owner's name, in the pod's namespace.
    pub name: String,
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not all containers have started.
    Pending,
    /// At least one container runs.
    #[default]
    Running,
    /// All containers have ended successfully.
    Succeeded,
    /// All containers have ended, one of them with a failure.
    Failed,
    /// The node does not report.
    Unknown,
}

/// A port that a container declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerPort {
    /// Empty if it has none.
    pub name: String,
    /// `containerPort`.
    pub port: u16,
    /// `protocol`.
    pub transport: Transport,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// The default.
    #[default]
    Tcp,
    /// Not carried by the mesh.
    Udp,
    /// Not carried by the mesh.
    Sctp,
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRef {
    /// The port number.
    Number(u16),
    /// The name of one of the pod's ports.
    Name(String),
}
