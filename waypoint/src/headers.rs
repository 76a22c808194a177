//! Headers that concern a connection rather than a request, and those that say who asks.
//!
//! Entry points: [`Target::of`] (which host and path are asked for), [`request`] and [`response`] (what is
//! left out and added on the way).

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use crate::downstream::Downstream;
use crate::failure::Failure;

/// Which certificate the client has shown, as Envoy tells it.
const CLIENT_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What a request asks for.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Its host, with a port where the client wrote one; none in HTTP/1.0.
    pub(crate) authority: Option<Authority>,
}

impl Target {
    /// The one host of a request. A request with another number of them, or with a host that is none, has
    /// more than one meaning and is refused.
    pub(crate) fn of(head: &Parts) -> Result<Self, Failure> {
        if head.method == Method::CONNECT {
            return Err(Failure::Method);
        }
        let is_path = head.uri.authority().is_none() || head.uri.scheme().is_some();
        let is_of_server = head.uri.path() == "*" && head.method != Method::OPTIONS;
        if !is_path || is_of_server {
            return Err(Failure::BadRequest("path is not valid"));
        }
        let mut lines = head.headers.get_all(HOST).iter();
        let (first, second) = (lines.next(), lines.next());
        if second.is_some() {
            return Err(Failure::BadRequest("more than one host"));
        }
        if head.version == Version::HTTP_2 {
            only_meaning(head, first)?;
        }
        let authority = match (head.uri.authority(), first) {
            // The request line counts (RFC 9112, 3.2.2), and `:authority` in HTTP/2.
            (Some(authority), _) => Some(authority.clone()),
            (None, Some(host)) if host.is_empty() => None,
            (None, Some(host)) => {
                let parsed = Authority::try_from(host.as_bytes());
                Some(parsed.map_err(|_| Failure::BadRequest("host is not valid"))?)
            }
            (None, None) if head.version > Version::HTTP_10 => {
                return Err(Failure::BadRequest("no host"));
            }
            (None, None) => None,
        };
        if authority.as_ref().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(Failure::BadRequest("host is not valid"));
        }
        Ok(Self { authority })
    }
}

/// What HTTP/2 leaves open and HTTP/1 behind it would read in another way (RFC 9113, 8.3.1 and 8.2.1).
fn only_meaning(head: &Parts, host: Option<&HeaderValue>) -> Result<(), Failure> {
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let (Some(authority), Some(host)) = (authority, host)
        && !authority.eq_ignore_ascii_case(host.as_bytes())
    {
        return Err(Failure::BadRequest("two hosts"));
    }
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    let is_one = lengths.next().is_none_or(|length| !length.is_empty()) && lengths.next().is_none();
    if is_one { Ok(()) } else { Err(Failure::BadRequest("length is not valid")) }
}

/// Leaves out what the client said of its connection, and says who the client is: what it said of that itself
/// is removed.
pub(crate) fn request(headers: &mut HeaderMap, downstream: &Downstream) {
    // Ahead of the removal: the client may not have others' headers removed by naming them.
    let trailers =
        headers.get_all(TE).iter().any(|value| tokens(value).any(|it| it.eq_ignore_ascii_case("trailers")));
    hop_by_hop(headers);
    headers.remove(TE);
    headers.remove(HTTP2_SETTINGS);
    // Answered by this hop.
    headers.remove(EXPECT);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    headers.insert(FORWARDED, downstream.forwarded.clone());
    headers.insert(CLIENT_CERTIFICATE, downstream.certificate.clone());
}

/// Leaves out what the endpoint said of its connection.
pub(crate) fn response(headers: &mut HeaderMap) {
    hop_by_hop(headers);
}

/// RFC 9110, 7.6.1. `Trailer` stays: it announces what is sent on.
fn hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(tokens)
            .filter_map(|name| name.parse().ok())
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [&KEEP_ALIVE, &PROXY_CONNECTION, &TRANSFER_ENCODING, &UPGRADE] {
        headers.remove(name);
    }
}

/// The elements of a list; nothing of a value that is no text.
pub(crate) fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|token| !token.is_empty())
}
