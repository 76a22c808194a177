//! Why a connection is refused: one enum for every decision taken here, with the names that logs, metrics and
//! statuses use. They are spelt like the kernel side's `Reason` in `ambit-abi`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::model::{Identity, PolicyKey, ServiceKey, WorkloadUid};

/// Why a connection is refused. `Display` names the object and says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The client's workload is not in the mesh's state (any more).
    #[error("client workload {0} is unknown")]
    SourceUnknown(WorkloadUid),
    /// Nothing known has the address: it was captured for something that has left since.
    #[error("no service and no workload has the address of {0}")]
    DestinationUnknown(SocketAddr),
    /// The service does not declare the port.
    #[error("service {service} has no port {port}")]
    ServicePortUnknown { service: ServiceKey, port: u16 },
    /// The service has no endpoint that may serve the port now.
    #[error("service {service} has no ready endpoint for port {port}")]
    NoEndpoint { service: ServiceKey, port: u16 },
    /// The destination must be reached through a waypoint, and this build carries no traffic to waypoints.
    #[error("{0} must be reached through its waypoint, which this version cannot do")]
    WaypointUnsupported(String),
    /// The server's workload is not in the mesh's state (any more).
    #[error("server workload {0} is unknown")]
    WorkloadUnknown(WorkloadUid),
    /// A tunnel to one of the mesh's own ports.
    #[error("port {0} is reserved for the mesh")]
    ReservedPort(u16),
    /// The requested address is not one of the workload's.
    #[error("{address} is not an address of {workload}")]
    AddressMismatch { workload: WorkloadUid, address: IpAddr },
    /// A DENY policy matches: its rule `rule`, counted from 0.
    #[error("policy {policy} (rule {rule}) denies {asked}")]
    PolicyDenied { policy: PolicyKey, rule: usize, asked: Box<Asked> },
    /// ALLOW policies select the workload and none of them matches.
    #[error("no ALLOW policy permits {0}")]
    PolicyNotAllowed(Box<Asked>),
    /// The workload names a policy that is not known (yet, or because it could not be read): it may deny.
    #[error("policy {policy}, which selects {workload}, is not known")]
    PolicyMissing { policy: PolicyKey, workload: WorkloadUid },
}

impl Denial {
    /// Every name that [`Self::reason`] gives, for those who must spell them the same way.
    pub const REASONS: [&str; 11] = [
        "source_unknown",
        "destination_unknown",
        "service_port_unknown",
        "no_endpoint",
        "waypoint_unsupported",
        "workload_unknown",
        "reserved_port",
        "address_mismatch",
        "policy_denied",
        "policy_not_allowed",
        "policy_missing",
    ];

    /// The stable name: `snake_case`, for logs, metrics and statuses.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::SourceUnknown(_) => "source_unknown",
            Self::DestinationUnknown(_) => "destination_unknown",
            Self::ServicePortUnknown { .. } => "service_port_unknown",
            Self::NoEndpoint { .. } => "no_endpoint",
            Self::WaypointUnsupported(_) => "waypoint_unsupported",
            Self::WorkloadUnknown(_) => "workload_unknown",
            Self::ReservedPort(_) => "reserved_port",
            Self::AddressMismatch { .. } => "address_mismatch",
            Self::PolicyDenied { .. } => "policy_denied",
            Self::PolicyNotAllowed(_) => "policy_not_allowed",
            Self::PolicyMissing { .. } => "policy_missing",
        }
    }

    /// The policy that refused, where one did.
    pub fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Self::PolicyDenied { policy, .. } | Self::PolicyMissing { policy, .. } => Some(policy),
            _ => None,
        }
    }
}

/// Who asked for what, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub identity: Option<Identity>,
    pub source: IpAddr,
    pub workload: WorkloadUid,
    pub destination: SocketAddr,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.identity {
            Some(identity) => write!(f, "{identity} ({})", self.source)?,
            None => write!(f, "a peer without identity ({})", self.source)?,
        }
        write!(f, " access to {} at {}", self.workload, self.destination)
    }
}
