//! Redirects: [`Redirect::location`].

use http::StatusCode;

use super::matching::PathMatch;
use super::rewrite::PathRewrite;

/// What a request-redirect filter answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The new scheme; the request's where there is none.
    pub scheme: Option<Scheme>,
    /// The new host; the request's where there is none.
    pub hostname: Option<Box<str>>,
    /// The new path; the request's where there is none.
    pub path: Option<PathRewrite>,
    /// The new port.
    pub port: Option<u16>,
    /// Which redirect it is.
    pub status: RedirectStatus,
}

/// The schemes that Gateway API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`, port 80.
    Http,
    /// `https`, port 443.
    Https,
}

/// The statuses that Gateway API knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedirectStatus {
    /// 301.
    MovedPermanently,
    /// 302, the default.
    #[default]
    Found,
    /// 303.
    SeeOther,
    /// 307.
    TemporaryRedirect,
    /// 308.
    PermanentRedirect,
}

/// Whom the client asked.
#[derive(Clone, Copy, Debug)]
pub struct Authority<'a> {
    /// The scheme in which the request came.
    pub scheme: Scheme,
    /// Its host, without a port.
    pub host: &'a str,
    /// The port that the client dialled.
    pub port: u16,
}

impl Redirect {
    /// The answer's `Location`.
    ///
    /// The port is the filter's; else, where the filter names a scheme, that scheme's own; else the one that
    /// the client dialled. A scheme's own port is not written.
    pub fn location(
        &self,
        asked: Authority<'_>,
        path: &str,
        query: Option<&str>,
        matched: &PathMatch,
    ) -> String {
        let scheme = self.scheme.unwrap_or(asked.scheme);
        let host = self.hostname.as_deref().unwrap_or(asked.host);
        let port = match (self.port, self.scheme) {
            (Some(port), _) => port,
            (None, Some(scheme)) => scheme.port(),
            (None, None) => asked.port,
        };
        let path = self.path.as_ref().map_or_else(|| path.to_owned(), |it| it.apply(path, matched));
        let port = if port == scheme.port() { String::new() } else { format!(":{port}") };
        let query = query.map_or_else(String::new, |query| format!("?{query}"));
        format!("{}://{host}{port}{path}{query}", scheme.name())
    }
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl RedirectStatus {
    /// The status of the answer.
    pub fn code(self) -> StatusCode {
        match self {
            Self::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
            Self::Found => StatusCode::FOUND,
            Self::SeeOther => StatusCode::SEE_OTHER,
            Self::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
            Self::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
        }
    }
}
