//! The nouns of the mesh: who a workload is, what a service is, what a policy says.
//!
//! Values here are valid by construction; text is parsed at the edges (`FromStr` here, conversions in `api`).

mod identity;
mod policy;
mod service;
mod workload;

pub use identity::{Identity, IdentityError, TrustDomain};
pub use policy::{
    Action, Authorization, Clause, IpBlock, Match, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
};
pub use service::{
    Affinity, AppProtocol, LoadBalancing, LoadBalancingMode, Locality, LocalityScope, Service, ServiceKey,
    ServicePort,
};
pub use workload::{
    ExcludedPorts, Health, NetworkMode, PortMapping, TunnelProtocol, Waypoint, WaypointDestination, Workload,
    WorkloadKind, WorkloadUid,
};
