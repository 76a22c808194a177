//! The request that opens a tunnel, parsed at the edge: [`ConnectRequest`].

mod baggage;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use http::header::{FORWARDED, HeaderName, HeaderValue};
use http::uri::Uri;
use http::{HeaderMap, Method, Request, StatusCode};

pub use self::baggage::Baggage;
use ambit_core::inbound::CLIENT_HEADER;
use ambit_core::model::Identity;

use crate::Error;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const CLIENT: HeaderName = HeaderName::from_static(CLIENT_HEADER);
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Where a tunnel ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// The application's address.
    Address(SocketAddr),
    /// A service's name, for waypoints.
    Host {
        /// The name, in lower case.
        name: Box<str>,
        /// The service's port.
        port: u16,
    },
}

/// A client's request and its description of itself. Only the certificate proves its identity: everything
/// but the authority is for telemetry and for showing the application its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Where the tunnel is to end.
    pub authority: Authority,
    /// The source workload's description of itself.
    pub baggage: Option<Baggage>,
    /// The address of the application that connected, according to its proxy.
    pub forwarded: Option<SocketAddr>,
    /// The client that a waypoint has verified, if it names one: believed of the destination's own waypoint
    /// only.
    pub client: Option<Identity>,
    /// W3C trace context.
    pub traceparent: Option<HeaderValue>,
}

/// Why a request opens no tunnel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The method is not CONNECT.
    #[error("method {0}, not CONNECT")]
    Method(Method),
    /// The request has no `:authority`.
    #[error("no authority")]
    NoAuthority,
    /// The authority is neither an address with a port nor a name with one.
    #[error("authority {0:?} is not address:port or host:port")]
    Authority(String),
    /// The client that is named is not one identity.
    #[error("{CLIENT_HEADER} is not one SPIFFE ID")]
    Client,
}

impl RequestError {
    /// How the request is answered.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoAuthority | Self::Authority(_) | Self::Client => StatusCode::BAD_REQUEST,
        }
    }
}

impl ConnectRequest {
    /// A request with an authority only.
    pub fn to(authority: SocketAddr) -> Self {
        Self {
            authority: Authority::Address(authority),
            baggage: None,
            forwarded: None,
            client: None,
            traceparent: None,
        }
    }

    /// The request as HTTP/2 sends it.
    pub fn to_http(&self) -> Result<Request<()>, Error> {
        let authority = self.authority.to_string();
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = Uri::from_str(&authority).map_err(|_invalid| Error::Authority { authority })?;
        let headers = request.headers_mut();
        if let Some(value) = self.baggage.as_ref().and_then(Baggage::to_header) {
            headers.insert(BAGGAGE, value);
        }
        if let Some(address) = self.forwarded {
            let value = HeaderValue::from_str(&format!("for=\"{address}\""));
            headers.insert(FORWARDED, value.expect("an address is visible ASCII"));
        }
        if let Some(client) = &self.client {
            let value = HeaderValue::from_str(&client.to_string());
            headers.insert(CLIENT, value.expect("an identity is visible ASCII"));
        }
        if let Some(value) = &self.traceparent {
            headers.insert(TRACEPARENT, value.clone());
        }
        Ok(request)
    }

    /// Reads a request. Headers that tunnels do not know are left alone.
    pub fn from_http<B>(request: &Request<B>) -> Result<Self, RequestError> {
        if request.method() != Method::CONNECT {
            return Err(RequestError::Method(request.method().clone()));
        }
        let authority = request.uri().authority().ok_or(RequestError::NoAuthority)?;
        let headers = request.headers();
        Ok(Self {
            authority: authority.as_str().parse()?,
            baggage: Baggage::from_headers(headers.get_all(BAGGAGE)),
            forwarded: headers.get_all(FORWARDED).iter().filter_map(parse_forwarded).next_back(),
            client: client(headers)?,
            traceparent: single(headers, &TRACEPARENT).cloned(),
        })
    }
}

/// The client that is named. One that cannot be read is no client, and then nothing may be opened in its
/// name.
fn client(headers: &HeaderMap) -> Result<Option<Identity>, RequestError> {
    if !headers.contains_key(CLIENT) {
        return Ok(None);
    }
    let value = single(headers, &CLIENT).and_then(|value| value.to_str().ok()?.parse().ok());
    value.map(Some).ok_or(RequestError::Client)
}

/// The header, unless it is there twice: then it is unknown which is meant.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    first.filter(|_| values.next().is_none())
}

/// RFC 7239: `for="10.0.0.1:4711"`, perhaps with further parameters (`;host=cart.shop`); IPv6 in brackets. Of
/// several elements the last is the nearest proxy's. None for what is no address with a port: it is only
/// shown, so a bad one is ignored.
fn parse_forwarded(value: &HeaderValue) -> Option<SocketAddr> {
    let element = value.to_str().ok()?.rsplit(',').next()?;
    let (_, node) = element
        .split(';')
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    let node = node.strip_prefix('"').and_then(|node| node.strip_suffix('"')).unwrap_or(node);
    node.parse().ok()
}

impl FromStr for Authority {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || RequestError::Authority(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(error()) } else { Ok(Self::Address(address)) };
        }
        let (name, port) = text.rsplit_once(':').ok_or_else(error)?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port != 0).ok_or_else(error)?;
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'*');
        if name.is_empty() || name.len() > 253 || !name.bytes().all(valid) || numeric(name) {
            return Err(error());
        }
        Ok(Self::Host { name: name.to_ascii_lowercase().into(), port })
    }
}

/// Looks like an IPv4 address but is none. It is no name either: some resolvers would take it for an address.
fn numeric(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests;
