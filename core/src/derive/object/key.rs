//! What names an object: its [`Kind`], its [`ObjectKey`] and its [`Metadata`].

use std::collections::BTreeMap;
use std::fmt;

use crate::route::RouteKind;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident,)*) => {
        /// The kinds of objects that are read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The kind as objects and metrics name it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind),)* }
            }
        }
    };
}

kinds! {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `networking.istio.io` WorkloadEntry.
    WorkloadEntry,
    /// `networking.istio.io` ServiceEntry.
    ServiceEntry,
    /// `security.istio.io` AuthorizationPolicy.
    AuthorizationPolicy,
    /// `security.istio.io` PeerAuthentication.
    PeerAuthentication,
    /// `gateway.networking.k8s.io` Gateway.
    Gateway,
    /// `gateway.networking.k8s.io` HTTPRoute.
    HTTPRoute,
    /// `gateway.networking.k8s.io` GRPCRoute.
    GRPCRoute,
    /// `gateway.networking.k8s.io` TLSRoute.
    TLSRoute,
    /// `gateway.networking.k8s.io` TCPRoute.
    TCPRoute,
    /// `gateway.networking.k8s.io` ReferenceGrant.
    ReferenceGrant,
}

impl Kind {
    /// The kind of a route's object.
    pub const fn of_route(route: RouteKind) -> Self {
        match route {
            RouteKind::Http => Self::HTTPRoute,
            RouteKind::Grpc => Self::GRPCRoute,
            RouteKind::Tls => Self::TLSRoute,
            RouteKind::Tcp => Self::TCPRoute,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The object's kind.
    pub kind: Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Unique among the kind's objects in the namespace.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// The metadata of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Unique among the kind's objects in the namespace.
    pub name: String,
    /// What selectors select by.
    pub labels: BTreeMap<String, String>,
    /// Settings that selectors do not see.
    pub annotations: BTreeMap<String, String>,
    /// `creationTimestamp` in seconds since 1970, where there is one.
    pub created: Option<i64>,
}

/// Labels that must all be present with these values.
pub type Selector = BTreeMap<String, String>;
