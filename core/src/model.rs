//! The resources of the mesh: workloads, services and policies.
//!
//! Values here are valid by construction; text is parsed at the edges (`FromStr` here, conversions in `api`).

mod claim;
mod identity;
mod key;
mod locality;
mod policy;
mod service;
mod waypoint;
mod workload;

pub use claim::{Claim, Exported, Origin};
pub use identity::{Identity, IdentityError, TrustDomain};
pub use key::{PolicyKey, ServiceKey, WorkloadUid};
pub use locality::{Locality, LocalityScope};
pub use policy::{
    Action, Authorization, Clause, IpBlock, Match, Rule, Scope, ServiceAccountMatch, StringMatch,
};
pub use service::{Affinity, AppProtocol, LoadBalancing, LoadBalancingMode, Service, ServicePort};
pub use waypoint::{Waypoint, WaypointDestination, WaypointState};
pub use workload::{ExcludedPorts, Health, NetworkMode, PortMapping, TunnelProtocol, Workload, WorkloadKind};
