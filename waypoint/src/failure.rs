//! Why a request was not answered by an endpoint: [`Failure`], and what each one means to client and
//! operator.

use std::sync::Arc;

use ambit_core::Denial;
use http::StatusCode;

/// Why a request has no answer of an endpoint's, or only part of one.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("method not supported")]
    Method,
    #[error("no configuration from the controller yet")]
    NotSynchronized,
    #[error("no route matches")]
    NoRoute,
    #[error("backend is not valid: {0}")]
    InvalidBackend(Arc<str>),
    #[error("no backend has a weight")]
    NoBackend,
    #[error("{0}")]
    NoEndpoint(Denial),
    #[error("{0}")]
    Connect(String),
    /// The endpoint broke off: before the head of its response if the status is still to be given.
    #[error("endpoint broke off: {0}")]
    Reset(String),
    #[error("the whole request took too long")]
    RequestTimeout,
    #[error("the endpoint took too long")]
    BackendTimeout,
    /// The client did, or sent a body that is no body.
    #[error("client broke off: {0}")]
    Client(String),
}

/// Envoy's response flag, as in metrics and the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Flag {
    /// An endpoint answered, or a rule did.
    #[default]
    None,
    /// No route.
    NoRoute,
    /// The route leads to nothing.
    NoBackend,
    /// No endpoint is ready.
    NoEndpoint,
    /// An endpoint could not be reached.
    ConnectFailed,
    /// An endpoint broke off.
    Reset,
    /// Time ran out.
    Timeout,
    /// The request was tried as often as it may be.
    RetriesExhausted,
    /// The client broke off.
    Client,
    /// The client does not speak HTTP.
    Protocol,
}

impl Flag {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NoRoute => "NR",
            Self::NoBackend => "NC",
            Self::NoEndpoint => "UH",
            Self::ConnectFailed => "UF",
            Self::Reset => "UC",
            Self::Timeout => "UT",
            Self::RetriesExhausted => "URX",
            Self::Client => "DC",
            Self::Protocol => "DPE",
        }
    }
}

impl Failure {
    /// What the client is answered, and the flag in metrics and the access log.
    pub(crate) fn meaning(&self) -> (StatusCode, Flag) {
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, Flag::Protocol),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, Flag::Protocol),
            Self::NotSynchronized => (StatusCode::SERVICE_UNAVAILABLE, Flag::NoBackend),
            Self::NoRoute => (StatusCode::NOT_FOUND, Flag::NoRoute),
            // Gateway API asks for this status where a route leads to nothing.
            Self::InvalidBackend(_) | Self::NoBackend => (StatusCode::INTERNAL_SERVER_ERROR, Flag::NoBackend),
            Self::NoEndpoint(_) => (StatusCode::SERVICE_UNAVAILABLE, Flag::NoEndpoint),
            Self::Connect(_) => (StatusCode::SERVICE_UNAVAILABLE, Flag::ConnectFailed),
            Self::Reset(_) => (StatusCode::SERVICE_UNAVAILABLE, Flag::Reset),
            Self::RequestTimeout | Self::BackendTimeout => (StatusCode::GATEWAY_TIMEOUT, Flag::Timeout),
            Self::Client(_) => (StatusCode::BAD_REQUEST, Flag::Client),
        }
    }

    /// What the client is told. Names of the mesh are for operators.
    pub(crate) fn text(&self) -> &'static str {
        match self {
            Self::BadRequest(why) => why,
            Self::Method => "method not supported",
            Self::NotSynchronized => "not ready",
            Self::NoRoute => "no route",
            Self::InvalidBackend(_) | Self::NoBackend => "no backend",
            Self::NoEndpoint(_) => "no healthy upstream",
            Self::Connect(_) => "upstream connect error",
            Self::Reset(_) => "upstream reset",
            Self::RequestTimeout | Self::BackendTimeout => "upstream request timeout",
            Self::Client(_) => "bad request body",
        }
    }
}
