//! What is compared: [`System`], and the [`Route`] between its pods.

use std::net::IpAddr;

use ambit_harness::Pod;
use clap::ValueEnum;

/// One way of getting from a client to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum System {
    /// Pods of two nodes, outside the mesh.
    Plain,
    /// Enrolled pods of two nodes: HBONE between two ztunnels.
    Tunnel,
    /// Pods of two nodes, an Envoy in each that carries TCP in mutual TLS.
    Envoy,
    /// Two pods of one node, outside the mesh.
    PlainLocal,
    /// Two enrolled pods of one node, on the direct path.
    Direct,
}

/// From a client to a server: what a load needs to know.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) client: Pod,
    pub(super) server: Pod,
    /// What the client connects to.
    pub(super) target: IpAddr,
    pub(super) client_cpu: usize,
    pub(super) server_cpu: usize,
}

impl System {
    /// In the order in which they take turns.
    pub(super) const ALL: [Self; 5] =
        [Self::Plain, Self::Tunnel, Self::Envoy, Self::PlainLocal, Self::Direct];

    /// Its name in reports, and the namespace of its pods.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tunnel => "tunnel",
            Self::Envoy => "envoy",
            Self::PlainLocal => "plain-local",
            Self::Direct => "direct",
        }
    }

    /// The same traffic without a mesh.
    pub(super) fn baseline(self) -> Self {
        match self {
            Self::Plain | Self::Tunnel | Self::Envoy => Self::Plain,
            Self::PlainLocal | Self::Direct => Self::PlainLocal,
        }
    }

    /// The index of the server's node.
    pub(super) fn server_node(self) -> usize {
        match self {
            Self::Plain | Self::Tunnel | Self::Envoy => 1,
            Self::PlainLocal | Self::Direct => 0,
        }
    }

    /// Whether its pods are enrolled.
    pub(super) fn meshed(self) -> bool {
        matches!(self, Self::Tunnel | Self::Direct)
    }
}
