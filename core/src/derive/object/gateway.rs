//! `gateway.networking.k8s.io`: [`Gateway`], [`ReferenceGrant`], and the kinds of routes as
//! [`RouteObject`].

use super::key::Metadata;
use super::listener::Listener;
use crate::route::{Filter, HeaderChange, Match, Retry, RouteKind, ServerNameMatch, Timeouts};

/// A Gateway. Only those of the class `ambit-waypoint` are the mesh's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec.gatewayClassName`.
    pub class: String,
    /// `spec.listeners`.
    pub listeners: Vec<Listener>,
    /// Its status says that it was programmed once.
    pub was_programmed: bool,
}

impl Gateway {
    /// Its listener for HBONE: the first, where there are several.
    pub fn hbone(&self) -> Option<&Listener> {
        self.listeners.iter().find(|listener| listener.is_hbone())
    }
}

/// Who may refer to objects of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// `metadata`.
    pub metadata: Metadata,
    /// Objects that may refer.
    pub from: Vec<GrantFrom>,
    /// Objects of its namespace that they may refer to.
    pub to: Vec<GrantTo>,
}

/// `spec.from[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantFrom {
    /// The API group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The namespace of the objects that refer.
    pub namespace: String,
}

/// `spec.to[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantTo {
    /// The API group; empty for the core group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// One object; `None`: all of the kind.
    pub name: Option<String>,
}

/// A route of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteObject {
    /// Which kind.
    pub kind: RouteKind,
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec.parentRefs`.
    pub parents: Vec<ParentRef>,
    /// `spec.hostnames` of routes of requests, which mean nothing to a mesh.
    pub hostnames: Vec<String>,
    /// `spec.hostnames` of a TLSRoute.
    pub server_names: Vec<ServerNameMatch>,
    /// `spec.rules`, never empty.
    pub rules: Vec<RouteRule>,
}

/// `spec.parentRefs[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParentRef {
    /// `gateway.networking.k8s.io` where none is written.
    pub group: String,
    /// `Gateway` where none is written.
    pub kind: String,
    /// The route's own where none is written.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
    /// Of a Service: the name of a port.
    pub section: Option<String>,
    /// A port.
    pub port: Option<u16>,
}

/// `spec.rules[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRule {
    /// `name`.
    pub name: Option<String>,
    /// Never empty, unless none of those that are written can be read.
    pub matches: Vec<Match>,
    /// In the order in which they are written.
    pub filters: Vec<RouteFilter>,
    /// `backendRefs`.
    pub backends: Vec<BackendRef>,
    /// `timeouts`.
    pub timeouts: Timeouts,
    /// `retry`.
    pub retry: Option<Retry>,
    /// Mistakes in what it matches or does.
    pub mistakes: Vec<RuleMistake>,
}

/// A mistake in a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleMistake {
    /// The path of the field.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// What it makes of the rule.
    pub effect: RuleEffect,
}

/// What a mistake makes of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleEffect {
    /// It matches requests, and answers them with an error: a filter cannot be followed.
    Fails,
    /// It is left out: what it matches is not known.
    Dropped,
    /// Its filters contradict each other, so it is left out.
    Incompatible,
}

/// A filter whose fields alone have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteFilter {
    /// One that refers to nothing.
    Ready(Filter),
    /// A mirror, whose backend must be found.
    Mirror {
        /// Where copies go.
        backend: BackendTarget,
        /// The share, `numerator` of `denominator`.
        numerator: u32,
        /// Never 0.
        denominator: u32,
    },
}

/// `backendRefs[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendRef {
    /// What it refers to.
    pub target: BackendTarget,
    /// Its share.
    pub weight: u32,
    /// Changes of the request's headers for it alone.
    pub request_headers: Vec<HeaderChange>,
    /// Changes of the response's headers for it alone.
    pub response_headers: Vec<HeaderChange>,
}

/// An object that requests may be sent to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendTarget {
    /// The path of the reference in its object.
    pub field: String,
    /// Empty for the core group.
    pub group: String,
    /// `Service` where none is written.
    pub kind: String,
    /// The route's own where none is written.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
    /// Needed for Services.
    pub port: Option<u16>,
}
