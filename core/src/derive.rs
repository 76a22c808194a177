//! Objects → changes: from what users write (Kubernetes or files, already parsed) to what the mesh holds.
//!
//! Entry point: [`World::apply`], events in, [`Change`](crate::mesh::Change)s and status [`Condition`]s out.
//! An object that cannot be derived becomes a condition, and its last good version stays in force.

mod authorization;
mod condition;
mod contested;
mod context;
mod dirty;
mod endpoint_slice;
pub mod grammar;
mod object;
mod peer_authentication;
mod report;
mod routes;
mod service;
mod service_entry;
mod settings;
mod standing;
mod steps;
mod store;
mod waypoint;
mod workload;
mod world;

pub use condition::Condition;
pub use object::{
    AllowedNamespaces, AuthorizationPolicy, BackendRef, BackendTarget, ContainerPort, EndpointSlice,
    EntryPort, Gateway, GrantFrom, GrantTo, Kind, LabelRequirement, LabelValue, Listener, LocalityText,
    Metadata, MtlsMode, Namespace, Node, Object, ObjectEvent, ObjectKey, Operation, Owner, ParentRef,
    PeerAuthentication, Phase, Pod, PolicyAction, PolicyRule, PortRef, ReferenceGrant, Resolution,
    RouteFilter, RouteObject, RouteRule, RuleEffect, RuleMistake, Selector, Service, ServiceEntry,
    ServicePort, SliceEndpoint, SlicePort, Source, TargetRef, TrafficDistribution, Transport, When,
    WorkloadEntry,
};
pub use settings::Settings;
pub use standing::{ListenerStanding, ParentStanding, Standing, Statement, WAYPOINT_CLASS};
pub use waypoint::{USE_WAYPOINT, USE_WAYPOINT_NAMESPACE, WAYPOINT_FOR};
pub use world::{Derived, World};
