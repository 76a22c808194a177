//! Routing: which rule of a service's routes serves a request or a connection.
//!
//! [`Mesh::routes`](crate::mesh::Mesh::routes) has the [`ServiceRoutes`] of a service, whose [`PortRoutes`]
//! are those of a port and a client: of connections the [`ConnectionTable`], of requests the [`Table`].
//! [`Table::new`] orders the matches of all its routes once, by [`Rank`]; [`Table::find`] answers for one
//! [`Request`] without allocating. A rule's filters are data with one function each that applies them
//! ([`HeaderChange`], [`Redirect`], [`Rewrite`], [`Cors`]); [`Backends::pick`] chooses among weighted
//! backends.
//!
//! The meaning is Gateway API's, for HTTPRoute and GRPCRoute alike: a match of a gRPC service and method is
//! one of a path ([`PathMatch::grpc`]).

mod attached;
mod backends;
mod connections;
mod cors;
mod headers;
mod matching;
mod normal;
mod pattern;
mod query;
mod rank;
mod redirect;
mod rewrite;
mod rule;
mod server_name;
mod table;
mod tree;

pub use attached::{Attached, PortRoutes, ServiceRoutes};
pub use backends::{Backend, Backends, Target};
pub use connections::ConnectionTable;
pub use cors::{Cors, CorsAnswer, OriginMatch};
pub use headers::HeaderChange;
pub use matching::{HeaderMatch, Match, PathMatch, QueryMatch, Request, ValueMatch};
pub use normal::normalized;
pub use pattern::{Pattern, PatternError};
pub use rank::Rank;
pub use redirect::{Authority, Redirect, RedirectStatus, Scheme};
pub use rewrite::{PathRewrite, Rewrite};
pub use rule::{Filter, Mirror, Retry, Route, RouteKey, RouteKind, Rule, Timeouts};
pub use server_name::ServerNameMatch;
pub use table::{Found, Table};
