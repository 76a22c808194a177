//! How a connection is carried: [`Plan`].

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use crate::model::{Identity, Service, Workload, WorkloadUid};
use crate::outlier::ServicePortKey;

/// A captured outbound connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The client's workload.
    pub source: WorkloadUid,
    /// The original destination.
    pub destination: SocketAddr,
    /// The endpoint that the kernel has chosen, if it has.
    pub chosen: Option<SocketAddr>,
}

/// How a connection is carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Through an HBONE tunnel to the endpoint.
    Tunnel(Tunnel),
    /// Through an HBONE tunnel to the destination's waypoint, which decides where it goes on.
    Waypoint(WaypointTunnel),
    /// The endpoint is the client's own workload: plaintext inside its network namespace.
    Local(Local),
    /// The endpoint is not enrolled: plaintext.
    Passthrough(Plaintext),
}

/// An HBONE tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The client's workload.
    pub source: Arc<Workload>,
    /// The endpoint, or the waypoint's.
    pub destination: Arc<Workload>,
    /// The service of the original destination, if it is a service's.
    pub service: Option<Arc<Service>>,
    /// The address that the HBONE connection is made to.
    pub peer: SocketAddr,
    /// The `:authority` of the CONNECT request: the application's address; to a waypoint, the original
    /// destination.
    pub authority: SocketAddr,
    /// The peer must present one of these.
    pub identities: Vec<Identity>,
}

/// An HBONE tunnel to a waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaypointTunnel {
    /// Its `destination` is the waypoint's endpoint, its `service` the one that was asked for.
    pub tunnel: Tunnel,
    /// The waypoint's own service and port, if the endpoint was chosen among that service's.
    pub waypoint: Option<ServicePortKey>,
}

/// A workload's connection to itself. No policy is evaluated for it, so only [`plan`](super::plan) makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local(pub(super) Plaintext);

impl Deref for Local {
    type Target = Plaintext;

    fn deref(&self) -> &Plaintext {
        &self.0
    }
}

/// A plaintext connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plaintext {
    /// The client's workload.
    pub source: Arc<Workload>,
    /// The endpoint; `None` where no workload has the address.
    pub destination: Option<Arc<Workload>>,
    /// The service of the original destination, if it is a service's.
    pub service: Option<Arc<Service>>,
    /// The endpoint's address and port. The address is unspecified where there is a host name.
    pub address: SocketAddr,
    /// The endpoint's host name: it is resolved when connecting, and [`resolved`](super::resolved) plans on.
    pub hostname: Option<Arc<str>>,
}

impl Plan {
    /// The service, and the port of it, among whose endpoints this one was chosen, if it was.
    pub fn chosen_of(&self, connection: &Connection) -> Option<ServicePortKey> {
        let asked = |service: &Arc<Service>| ServicePortKey {
            service: service.key.clone(),
            port: connection.destination.port(),
        };
        match self {
            Self::Waypoint(to) => to.waypoint.clone(),
            Self::Tunnel(_) | Self::Local(_) | Self::Passthrough(_) => self.service().map(asked),
        }
    }

    /// The service of the original destination, if it is a service's.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Tunnel(tunnel) => tunnel.service.as_ref(),
            Self::Waypoint(to) => to.tunnel.service.as_ref(),
            Self::Local(local) => local.service.as_ref(),
            Self::Passthrough(plaintext) => plaintext.service.as_ref(),
        }
    }

    /// The endpoint, where it is known.
    pub fn destination(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Tunnel(tunnel) => Some(&tunnel.destination),
            Self::Waypoint(to) => Some(&to.tunnel.destination),
            Self::Local(local) => local.destination.as_ref(),
            Self::Passthrough(plaintext) => plaintext.destination.as_ref(),
        }
    }
}
