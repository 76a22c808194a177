//! What a route says: [`Route`], its [`Rule`]s, and what a rule does with a request ([`Filter`]s in their
//! order).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::backends::{Backends, Target};
use super::cors::Cors;
use super::headers::HeaderChange;
use super::matching::Match;
use super::redirect::Redirect;
use super::rewrite::Rewrite;
use super::server_name::ServerNameMatch;

/// One route object as it applies to one service and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its object.
    pub key: RouteKey,
    /// When the object was made, in seconds since 1970: the older one wins a tie.
    pub created: i64,
    /// Of a TLSRoute: the server names whose connections it routes; none are all of them.
    pub server_names: Vec<ServerNameMatch>,
    /// Its rules, in the object's order. Of one that routes connections the first serves them all.
    pub rules: Vec<Rule>,
}

/// The object that a route comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteKey {
    /// Its kind.
    pub kind: RouteKind,
    /// The object's namespace.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
}

/// The kinds of routes, in the order in which they take a port of a service: a port has routes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// `GRPCRoute`.
    Grpc,
    /// `HTTPRoute`.
    Http,
    /// `TLSRoute`.
    Tls,
    /// `TCPRoute`.
    Tcp,
}

impl RouteKind {
    /// The name of the object's kind.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "GRPCRoute",
            Self::Http => "HTTPRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
        }
    }

    /// Whether it routes requests, not connections.
    pub const fn is_of_requests(self) -> bool {
        matches!(self, Self::Grpc | Self::Http)
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.name(), self.namespace, self.name)
    }
}

/// What happens to requests of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its `sectionName`, where it has one.
    pub name: Option<Arc<str>>,
    /// Alternatives: one that holds is enough. Never empty ([`Match::any`]).
    pub matches: Vec<Match>,
    /// What is done with the request and its response, in this order.
    pub filters: Vec<Filter>,
    /// Who serves it.
    pub backends: Backends,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// Whether and how often it is tried again.
    pub retry: Option<Retry>,
}

/// One thing that is done with a request or its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Changes headers of the request.
    RequestHeaders(HeaderChange),
    /// Changes headers of the response.
    ResponseHeaders(HeaderChange),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Changes host or path of the request.
    Rewrite(Rewrite),
    /// Sends a copy elsewhere.
    Mirror(Mirror),
    /// Answers preflight requests and marks responses.
    Cors(Cors),
}

/// A copy of a share of the requests, whose answers are thrown away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where copies go.
    pub target: Target,
    /// The share, `numerator` of `denominator`.
    pub numerator: u32,
    /// Never 0.
    pub denominator: u32,
}

impl Mirror {
    /// Whether this request is copied; `random` is uniform over all of `u32`.
    pub fn takes(&self, random: u32) -> bool {
        // 64 bits: neither product can overflow.
        u64::from(random) * u64::from(self.denominator) < (u64::from(self.numerator) << 32)
    }
}

/// How long things may take; nothing where there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's first byte to the response's last, retries included.
    pub request: Option<Duration>,
    /// One try at one backend, from its first byte to its response's last.
    pub backend_request: Option<Duration>,
}

/// When a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries after the first.
    pub attempts: u32,
    /// Responses that are not good enough; a connection that fails is tried again in any case.
    pub codes: Vec<StatusCode>,
    /// The least pause before a try, doubled for each.
    pub backoff: Duration,
}

impl Retry {
    /// Whether a response with this status is one to try again after.
    pub fn wants(&self, status: StatusCode) -> bool {
        self.codes.contains(&status)
    }

    /// The pause before the try of this number (the first retry is 1), without jitter; at most a minute.
    pub fn pause(&self, number: u32) -> Duration {
        const MOST: Duration = Duration::from_mins(1);
        let factor = 1_u32.checked_shl(number.saturating_sub(1)).unwrap_or(u32::MAX);
        self.backoff.saturating_mul(factor).min(MOST)
    }
}
