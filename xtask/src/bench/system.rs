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
    /// HTTP between two pods, without a proxy.
    Http,
    /// The same through an Envoy that routes requests.
    EnvoyHttp,
    /// Through HAProxy.
    Haproxy,
    /// Through the waypoint's code for requests, with plain TCP on both sides.
    Waypoint,
    /// The same with 5,000 routes of the service.
    WaypointRoutes,
    /// Through a waypoint as it is deployed, between two ztunnels.
    WaypointHbone,
}

/// From a client to a server: what a load needs to know.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) client: Pod,
    pub(super) server: Pod,
    /// What the client connects to.
    pub(super) target: IpAddr,
    /// The port of its requests.
    pub(super) port: u16,
    pub(super) client_cpu: usize,
    pub(super) server_cpu: usize,
}

impl System {
    /// In the order in which they take turns.
    pub(super) const ALL: [Self; 11] = [
        Self::Plain,
        Self::Tunnel,
        Self::Envoy,
        Self::PlainLocal,
        Self::Direct,
        Self::Http,
        Self::EnvoyHttp,
        Self::Haproxy,
        Self::Waypoint,
        Self::WaypointRoutes,
        Self::WaypointHbone,
    ];

    /// Its name in reports, and the namespace of its pods.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tunnel => "tunnel",
            Self::Envoy => "envoy",
            Self::PlainLocal => "plain-local",
            Self::Direct => "direct",
            Self::Http => "http",
            Self::EnvoyHttp => "envoy-http",
            Self::Haproxy => "haproxy",
            Self::Waypoint => "waypoint",
            Self::WaypointRoutes => "waypoint-routes",
            Self::WaypointHbone => "waypoint-hbone",
        }
    }

    /// The same traffic without a mesh.
    pub(super) fn baseline(self) -> Self {
        match self {
            Self::Plain | Self::Tunnel | Self::Envoy => Self::Plain,
            Self::PlainLocal | Self::Direct => Self::PlainLocal,
            Self::Http
            | Self::EnvoyHttp
            | Self::Haproxy
            | Self::Waypoint
            | Self::WaypointRoutes
            | Self::WaypointHbone => Self::Http,
        }
    }

    /// The index of the server's node.
    pub(super) fn server_node(self) -> usize {
        match self {
            Self::Plain | Self::Tunnel | Self::Envoy | Self::WaypointHbone => 1,
            _ => 0,
        }
    }

    /// Whether its pods are enrolled.
    pub(super) fn meshed(self) -> bool {
        matches!(self, Self::Tunnel | Self::Direct | Self::WaypointHbone)
    }

    /// Whether it belongs to the comparison of HTTP proxies, each alone on one CPU.
    pub(super) fn is_of_proxies(self) -> bool {
        self.baseline() == Self::Http
    }
}
