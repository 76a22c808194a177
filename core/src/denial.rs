//! Why a decision of this crate refuses a connection: [`Denial`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::model::{Identity, PolicyKey, ServiceKey, WaypointDestination, WorkloadUid};
use crate::reason::Reason;

/// Why a connection is refused. `Display` names the object and says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The client's workload is not in the mesh's state.
    #[error("client workload {0} is unknown")]
    SourceUnknown(WorkloadUid),
    /// No workload and no service has the address: it was captured for one that has been removed.
    #[error("no service and no workload has the address of {0}")]
    DestinationUnknown(SocketAddr),
    /// The service does not declare the port.
    #[error("service {service} has no port {port}")]
    ServicePortUnknown {
        /// The service that has the address.
        service: ServiceKey,
        /// The port of the original destination.
        port: u16,
    },
    /// The service has no endpoint that may serve the port now.
    #[error("service {service} has no ready endpoint for port {port}")]
    NoEndpoint {
        /// The service that has the address.
        service: ServiceKey,
        /// The port of the original destination.
        port: u16,
    },
    /// The waypoint that connections must pass is not known, or none of its endpoints is ready.
    #[error("the waypoint {waypoint} of {destination} has no ready endpoint")]
    WaypointUnavailable {
        /// The service or workload that was asked for.
        destination: String,
        /// Its waypoint.
        waypoint: WaypointDestination,
    },
    /// A policy needs the waypoint, which was never programmed.
    #[error("a policy of {destination} needs its waypoint {waypoint}, which is not programmed yet")]
    WaypointNotProgrammed {
        /// The service or workload that was asked for.
        destination: String,
        /// Its waypoint.
        waypoint: WaypointDestination,
    },
    /// The workload takes only what has passed the waypoint, and the peer is not that.
    #[error("{workload} accepts connections from its waypoint only, not from {peer}")]
    WaypointRequired {
        /// The workload that received the connection.
        workload: WorkloadUid,
        /// The peer, or its address where it has no identity.
        peer: String,
    },
    /// A waypoint was asked for something that it does not stand in front of.
    #[error("{0} does not have this waypoint")]
    NotFronted(String),
    /// The server's workload is not in the mesh's state.
    #[error("server workload {0} is unknown")]
    WorkloadUnknown(WorkloadUid),
    /// A tunnel to one of the mesh's own ports.
    #[error("port {0} is reserved for the mesh")]
    ReservedPort(u16),
    /// The requested address is not one of the workload's.
    #[error("{address} is not an address of {workload}")]
    AddressMismatch {
        /// The workload that received the connection.
        workload: WorkloadUid,
        /// The requested address.
        address: IpAddr,
    },
    /// A DENY policy matches.
    #[error("policy {policy} (rule {rule}) denies {access}")]
    PolicyDenied {
        /// The policy that matches.
        policy: PolicyKey,
        /// The index of the rule that matches, from 0.
        rule: usize,
        /// What was denied.
        access: Box<Access>,
    },
    /// ALLOW policies apply to the workload and none of them matches.
    #[error("no ALLOW policy permits {0}")]
    PolicyNotAllowed(Box<Access>),
    /// The workload names a policy that has not arrived or could not be decoded: it may be a DENY policy.
    #[error("policy {policy}, which selects {workload}, is not known")]
    PolicyMissing {
        /// The policy that is not known.
        policy: PolicyKey,
        /// The workload that names it.
        workload: WorkloadUid,
    },
}

impl Denial {
    /// The reason that logs, metrics and statuses show.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::SourceUnknown(_) => Reason::SourceUnknown,
            Self::DestinationUnknown(_) => Reason::DestinationUnknown,
            Self::ServicePortUnknown { .. } => Reason::ServicePortUnknown,
            Self::NoEndpoint { .. } => Reason::NoEndpoint,
            Self::WaypointUnavailable { .. } => Reason::WaypointUnavailable,
            Self::WaypointNotProgrammed { .. } => Reason::WaypointNotProgrammed,
            Self::WaypointRequired { .. } => Reason::WaypointRequired,
            Self::NotFronted(_) => Reason::NotFronted,
            Self::WorkloadUnknown(_) => Reason::WorkloadUnknown,
            Self::ReservedPort(_) => Reason::ReservedPort,
            Self::AddressMismatch { .. } => Reason::AddressMismatch,
            Self::PolicyDenied { .. } => Reason::PolicyDenied,
            Self::PolicyNotAllowed(_) => Reason::PolicyNotAllowed,
            Self::PolicyMissing { .. } => Reason::PolicyMissing,
        }
    }

    /// The policy that denied, where one did.
    pub fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Self::PolicyDenied { policy, .. } | Self::PolicyMissing { policy, .. } => Some(policy),
            _ => None,
        }
    }
}

/// The access that a policy denied, as messages show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// From the peer's certificate; `None` for plaintext.
    pub identity: Option<Identity>,
    /// The peer's address.
    pub source: IpAddr,
    /// The destination workload.
    pub workload: WorkloadUid,
    /// The application's address and port.
    pub destination: SocketAddr,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.identity {
            Some(identity) => write!(f, "{identity} ({})", self.source)?,
            None => write!(f, "a peer without identity ({})", self.source)?,
        }
        write!(f, " access to {} at {}", self.workload, self.destination)
    }
}
