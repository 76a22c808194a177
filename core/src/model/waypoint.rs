//! Waypoints: layer-7 proxies in front of services and workloads ([`Waypoint`]).

use std::net::IpAddr;

use super::key::ServiceKey;

/// A layer-7 proxy that connections to a service or workload must pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Waypoint {
    /// Where the proxy is.
    pub destination: WaypointDestination,
    /// Its HBONE port, normally 15008.
    pub hbone_port: u16,
}

/// How a waypoint is addressed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WaypointDestination {
    /// By the service that the waypoint's pods serve.
    Hostname(ServiceKey),
    /// By an address.
    Address(IpAddr),
}
