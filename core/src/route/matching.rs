//! What a rule matches on, and whether a request does: [`Match::matches`].

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::pattern::Pattern;
use super::query;

/// What of a request decides its route.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path, with a leading slash, normalised before it comes here.
    pub path: &'a str,
    /// What stands behind the `?`, if there is one.
    pub query: Option<&'a str>,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// One of a rule's alternatives; everything in it must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The path.
    pub path: PathMatch,
    /// The method, if one is asked for.
    pub method: Option<Method>,
    /// Headers, each of another name.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters, each of another name.
    pub query: Vec<QueryMatch>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// This path, a trailing slash included.
    Exact(Box<str>),
    /// These elements first: `/shop` matches `/shop`, `/shop/` and `/shop/cart`, not `/shopping`.
    Prefix(Box<str>),
    /// The whole path.
    Pattern(Pattern),
}

/// A condition on a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The header's name.
    pub name: HeaderName,
    /// What its value must be; several lines of one name are one value, joined by commas (RFC 9110, 5.3).
    pub value: ValueMatch,
}

/// A condition on a query parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    /// The parameter's name, decoded.
    pub name: Box<str>,
    /// What its first value must be, decoded.
    pub value: ValueMatch,
}

/// A condition on a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// This value.
    Exact(Box<str>),
    /// The whole value.
    Pattern(Pattern),
}

impl Match {
    /// What a rule without matches has: every request.
    pub fn any() -> Self {
        Self { path: PathMatch::Prefix("/".into()), method: None, headers: Vec::new(), query: Vec::new() }
    }

    /// Whether the request matches.
    pub fn matches(&self, request: &Request<'_>) -> bool {
        self.path.matches(request.path) && self.matches_beside_path(request)
    }

    /// What remains where an index has found the path.
    pub(super) fn matches_beside_path(&self, request: &Request<'_>) -> bool {
        self.method.as_ref().is_none_or(|method| method == request.method)
            && self.headers.iter().all(|header| header.matches(request.headers))
            && self.query.iter().all(|parameter| parameter.matches(request.query.unwrap_or("")))
    }
}

impl PathMatch {
    /// The path of a gRPC method: `/service/method`, where either may be left open.
    pub fn grpc(service: Option<&str>, method: Option<&str>) -> Self {
        match (service, method) {
            (Some(service), Some(method)) => Self::Exact(format!("/{service}/{method}").into()),
            (Some(service), None) => Self::Prefix(format!("/{service}").into()),
            (None, Some(method)) => {
                let pattern = Pattern::new(&format!("/[^/]+/{}", regex::escape(method)));
                Self::Pattern(pattern.expect("an escaped text between fixed ones is an expression"))
            }
            (None, None) => Self::Prefix("/".into()),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => {
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Pattern(pattern) => pattern.matches(path),
        }
    }
}

impl HeaderMatch {
    fn matches(&self, headers: &HeaderMap) -> bool {
        let mut lines = headers.get_all(&self.name).iter();
        let Some(first) = lines.next() else { return false };
        let second = lines.next();
        match (&self.value, second) {
            (ValueMatch::Exact(value), None) => first.as_bytes() == value.as_bytes(),
            (value, second) => {
                let joined = joined(first, second.into_iter().chain(lines));
                std::str::from_utf8(&joined).is_ok_and(|text| value.matches(text))
            }
        }
    }
}

/// Lines of one header as one value; copied only where there are several.
fn joined<'a>(first: &'a HeaderValue, rest: impl Iterator<Item = &'a HeaderValue>) -> Cow<'a, [u8]> {
    rest.fold(Cow::Borrowed(first.as_bytes()), |mut value, line| {
        let bytes = value.to_mut();
        bytes.push(b',');
        bytes.extend_from_slice(line.as_bytes());
        value
    })
}

impl QueryMatch {
    fn matches(&self, query: &str) -> bool {
        let Some(value) = query::first(query, &self.name) else { return false };
        match &self.value {
            ValueMatch::Exact(exact) => query::equals(value, exact),
            ValueMatch::Pattern(pattern) => pattern.matches(&query::text(value)),
        }
    }
}

impl ValueMatch {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Pattern(pattern) => pattern.matches(text),
        }
    }
}
