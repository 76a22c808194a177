//! Waypoints: layer-7 proxies in front of services and workloads ([`Waypoint`]).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::key::ServiceKey;

/// The binding of a service or workload to a layer-7 proxy that its connections must pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Waypoint {
    /// Where the proxy is.
    pub destination: WaypointDestination,
    /// Its HBONE port, normally 15008.
    pub hbone_port: u16,
    /// The service account that it must prove, in the namespace of its service; `None`: the account of the
    /// endpoint that is reached (another control plane's waypoints).
    pub service_account: Option<Arc<str>>,
    /// Whether the binding acts.
    pub state: WaypointState,
}

/// How a waypoint is addressed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WaypointDestination {
    /// By the service that the waypoint's pods serve.
    Hostname(ServiceKey),
    /// By an address.
    Address(IpAddr),
}

/// Whether a binding acts: from its Gateway's first `Programmed` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WaypointState {
    /// It acts: connections pass the waypoint, or fail.
    #[default]
    Programmed,
    /// The Gateway was never programmed: connections go as they would without it.
    Pending,
    /// The Gateway was never programmed, and a policy needs it: connections are refused until it is.
    Awaited,
}

impl Waypoint {
    /// A binding that acts, on the usual port.
    pub fn new(destination: WaypointDestination) -> Self {
        let state = WaypointState::Programmed;
        Self { destination, hbone_port: 15008, service_account: None, state }
    }

    /// Whether connections may not go without it.
    pub fn acts(&self) -> bool {
        match self.state {
            WaypointState::Programmed | WaypointState::Awaited => true,
            WaypointState::Pending => false,
        }
    }

    /// Whether it is the waypoint that serves as this service.
    pub fn is(&self, service: &ServiceKey) -> bool {
        self.destination == WaypointDestination::Hostname(service.clone())
    }
}

impl fmt::Display for WaypointDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostname(service) => service.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}
