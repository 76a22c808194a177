//! [`Interest`].

use ambit_core::model::ServiceKey;

/// What a client wants of the mesh beside its workloads, services and policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Interest {
    /// Nothing: a node's daemon.
    #[default]
    Node,
    /// The routes of the services that are bound to the waypoint that serves as this service.
    Waypoint(ServiceKey),
}
