//! What a server answers ([`Router`]): paths, methods, handlers, and the small request and response they work
//! with.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::Serialize;

/// The longest body a request may have.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// How long it may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

type Handler = Arc<dyn Fn(Request) -> Pin<Box<dyn Future<Output = Response> + Send>> + Send + Sync>;

/// A request as handlers see it.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Decoded query parameters; of a repeated one the last.
    pub query: BTreeMap<String, String>,
    /// At most 64 KiB.
    pub body: Bytes,
}

/// A handler's answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: StatusCode,
    /// The header of that name.
    pub content_type: &'static str,
    /// The text.
    pub body: Bytes,
}

impl Response {
    /// 200 and plain text.
    pub fn text(body: impl Into<String>) -> Self {
        Self::new(StatusCode::OK, "text/plain; charset=utf-8", body.into())
    }

    /// 200 and the value as indented JSON.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec_pretty(value) {
            Ok(body) => Self::new(StatusCode::OK, "application/json", body),
            Err(error) => {
                Self::error(StatusCode::INTERNAL_SERVER_ERROR, &format!("failed to encode answer: {error}"))
            }
        }
    }

    /// A status with `{"error": message}`.
    pub fn error(status: StatusCode, message: &str) -> Self {
        Self::json(&BTreeMap::from([("error", message)])).with_status(status)
    }

    /// The same with another status.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, content_type, body: body.into() }
    }
}

/// Which handler answers which path.
#[derive(Clone, Default)]
pub struct Router {
    routes: BTreeMap<&'static str, Route>,
}

#[derive(Clone, Default)]
struct Route {
    get: Option<Handler>,
    post: Option<Handler>,
}

impl Router {
    /// Answers no path yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers `GET` (and `HEAD`) of a path.
    #[must_use]
    pub fn get<F, A>(mut self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        self.routes.entry(path).or_default().get = Some(Arc::new(move |request| Box::pin(handler(request))));
        self
    }

    /// Answers `POST` of a path.
    #[must_use]
    pub fn post<F, A>(mut self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        self.routes.entry(path).or_default().post = Some(Arc::new(move |request| Box::pin(handler(request))));
        self
    }

    /// Answers `/metrics`.
    #[must_use]
    pub fn metrics(self, metrics: &crate::telemetry::metrics::Metrics) -> Self {
        let metrics = metrics.clone();
        self.get("/metrics", move |_| {
            let text = metrics.render();
            std::future::ready(Response::new(
                StatusCode::OK,
                crate::telemetry::exposition::CONTENT_TYPE,
                text,
            ))
        })
    }

    /// Takes the other's routes too; the other's win.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.routes.extend(other.routes);
        self
    }

    /// Answers one request, whatever it is.
    pub(super) async fn answer(&self, request: http::Request<Incoming>) -> http::Response<Full<Bytes>> {
        let Some(route) = self.routes.get(request.uri().path()) else {
            let paths: Vec<_> = self.routes.keys().collect();
            let answer = Response::json(&serde_json::json!({ "error": "no such path", "paths": paths }));
            return answer.with_status(StatusCode::NOT_FOUND).into_http();
        };
        let handler = match *request.method() {
            Method::GET | Method::HEAD => route.get.as_ref(),
            Method::POST => route.post.as_ref(),
            _ => None,
        };
        let Some(handler) = handler else { return route.refuse_method() };
        let answer = match Request::read(request).await {
            Ok(request) => handler(request).await,
            Err(refusal) => refusal,
        };
        answer.into_http()
    }
}

impl Route {
    fn refuse_method(&self) -> http::Response<Full<Bytes>> {
        let allow = match (&self.get, &self.post) {
            (Some(_), Some(_)) => "GET, HEAD, POST",
            (Some(_), None) => "GET, HEAD",
            (None, _) => "POST",
        };
        let mut answer = Response::error(StatusCode::METHOD_NOT_ALLOWED, &format!("use {allow}")).into_http();
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        answer
    }
}

impl Request {
    async fn read(request: http::Request<Incoming>) -> Result<Self, Response> {
        // A page in a browser must not change a daemon on that machine.
        if request.method() == Method::POST && request.headers().contains_key(header::ORIGIN) {
            return Err(Response::error(StatusCode::FORBIDDEN, "requests from a web page are refused"));
        }
        let query = parse_query(request.uri().query().unwrap_or_default())
            .map_err(|message| Response::error(StatusCode::BAD_REQUEST, &message))?;
        let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
        match tokio::time::timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(body)) => Ok(Self { query, body: body.to_bytes() }),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let message = format!("body is longer than {MAX_BODY_BYTES} bytes");
                Err(Response::error(StatusCode::PAYLOAD_TOO_LARGE, &message))
            }
            Ok(Err(error)) => {
                Err(Response::error(StatusCode::BAD_REQUEST, &format!("failed to read body: {error}")))
            }
            Err(_elapsed) => Err(Response::error(StatusCode::REQUEST_TIMEOUT, "body did not arrive in time")),
        }
    }
}

impl Response {
    fn into_http(self) -> http::Response<Full<Bytes>> {
        let mut answer = http::Response::new(Full::new(self.body));
        *answer.status_mut() = self.status;
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        answer
    }
}

fn parse_query(query: &str) -> Result<BTreeMap<String, String>, String> {
    let decode = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8();
        decoded.map(Cow::into_owned).map_err(|_| format!("query parameter {text:?} is not UTF-8"))
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.routes.keys()).finish()
    }
}
