//! The objects that users write, parsed from YAML files or read from the Kubernetes API.
//!
//! A mistake in one field alone is found by the parser: addresses, ports and modes are values here. What can
//! be checked only with other objects or settings is text here, and checked by the derivation.
//!
//! Entry point: [`Object`]; its kinds: [`Kind`].

mod gateway;
mod key;
mod listener;
mod namespace;
mod networking;
mod pod;
mod security;
mod service;

pub use gateway::{
    BackendRef, BackendTarget, Gateway, GrantFrom, GrantTo, ParentRef, ReferenceGrant, RouteFilter,
    RouteObject, RouteRule, RuleEffect, RuleMistake,
};
pub use key::{Kind, Metadata, ObjectKey, Selector};
pub use listener::{AllowedNamespaces, LabelRequirement, LabelValue, Listener};
pub use namespace::Namespace;
pub use networking::{EntryPort, LocalityText, Resolution, ServiceEntry, WorkloadEntry};
pub use pod::{ContainerPort, Node, Owner, Phase, Pod, PortRef, Transport};
pub use security::{
    AuthorizationPolicy, MtlsMode, Operation, PeerAuthentication, PolicyAction, PolicyRule, Source,
    TargetRef, When,
};
pub use service::{EndpointSlice, Service, ServicePort, SliceEndpoint, SlicePort, TrafficDistribution};

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `v1` Namespace.
    Namespace(Namespace),
    /// `v1` Node.
    Node(Node),
    /// `v1` Pod.
    Pod(Pod),
    /// `v1` Service.
    Service(Service),
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// `networking.istio.io` WorkloadEntry.
    WorkloadEntry(WorkloadEntry),
    /// `networking.istio.io` ServiceEntry.
    ServiceEntry(ServiceEntry),
    /// `security.istio.io` AuthorizationPolicy.
    AuthorizationPolicy(AuthorizationPolicy),
    /// `security.istio.io` PeerAuthentication.
    PeerAuthentication(PeerAuthentication),
    /// `gateway.networking.k8s.io` Gateway.
    Gateway(Gateway),
    /// `gateway.networking.k8s.io` HTTPRoute, GRPCRoute, TLSRoute or TCPRoute.
    Route(Box<RouteObject>),
    /// `gateway.networking.k8s.io` ReferenceGrant.
    ReferenceGrant(ReferenceGrant),
}

impl Object {
    /// The object's kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        let (kind, metadata) = match self {
            Self::Namespace(o) => (Kind::Namespace, &o.metadata),
            Self::Node(o) => (Kind::Node, &o.metadata),
            Self::Pod(o) => (Kind::Pod, &o.metadata),
            Self::Service(o) => (Kind::Service, &o.metadata),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, &o.metadata),
            Self::WorkloadEntry(o) => (Kind::WorkloadEntry, &o.metadata),
            Self::ServiceEntry(o) => (Kind::ServiceEntry, &o.metadata),
            Self::AuthorizationPolicy(o) => (Kind::AuthorizationPolicy, &o.metadata),
            Self::PeerAuthentication(o) => (Kind::PeerAuthentication, &o.metadata),
            Self::Gateway(o) => (Kind::Gateway, &o.metadata),
            Self::Route(o) => (Kind::of_route(o.kind), &o.metadata),
            Self::ReferenceGrant(o) => (Kind::ReferenceGrant, &o.metadata),
        };
        ObjectKey { kind, namespace: metadata.namespace.clone(), name: metadata.name.clone() }
    }
}

/// A change of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectEvent {
    /// The object is new or changed.
    Put(Box<Object>),
    /// The object was deleted.
    Delete(ObjectKey),
}
