//! Cross-origin requests: [`Cors::answer`].

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

/// What a CORS filter permits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// Origins that may read answers.
    pub origins: Vec<OriginMatch>,
    /// Whether they may send credentials.
    pub credentials: bool,
    /// Methods that they may use; empty is none beside the simple ones, `*` is every one.
    pub methods: Vec<Box<str>>,
    /// Headers that they may send; `*` is every one.
    pub headers: Vec<Box<str>>,
    /// Headers of the answer that they may read.
    pub exposed: Vec<HeaderName>,
    /// How long an answer to a preflight request holds, in seconds.
    pub max_age: u32,
}

/// One permitted origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginMatch {
    /// Every origin.
    Any,
    /// This one: scheme, host and port as a browser writes them.
    Exact(Box<str>),
    /// Every host below a domain: `https://*.example.com` is `https://` and `.example.com`.
    Below {
        /// With its `://`.
        scheme: Box<str>,
        /// With its leading dot, and a port where one was written.
        domain: Box<str>,
    },
}

/// What a CORS filter makes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsAnswer {
    /// It came from no other origin, or from one that is not permitted: nothing is added, and a browser
    /// refuses.
    Nothing,
    /// It asks beforehand: it is answered at once with these headers and 204.
    Preflight(HeaderMap),
    /// It goes on, and these headers are added to its answer.
    Response(HeaderMap),
}

impl Cors {
    /// What to do with a request.
    pub fn answer(&self, method: &Method, headers: &HeaderMap) -> CorsAnswer {
        let Some(origin) = headers.get(header::ORIGIN) else { return CorsAnswer::Nothing };
        let permitted = origin.to_str().is_ok_and(|origin| self.origins.iter().any(|it| it.matches(origin)));
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
        let preflight = method == Method::OPTIONS && asked.is_some();
        if !permitted {
            // A preflight request is never a backend's affair: without headers the browser takes it as a no.
            return if preflight { CorsAnswer::Preflight(HeaderMap::new()) } else { CorsAnswer::Nothing };
        }
        let mut answer = HeaderMap::new();
        self.origin(origin, &mut answer);
        if let Some(asked) = asked.filter(|_| preflight) {
            self.preflight(asked, headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS), &mut answer);
            return CorsAnswer::Preflight(answer);
        }
        if let Some(names) = list(self.exposed.iter().map(HeaderName::as_str)) {
            answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, names);
        }
        CorsAnswer::Response(answer)
    }

    /// The origin itself rather than `*`: with credentials `*` means nothing, and caches are told by `Vary`.
    fn origin(&self, origin: &HeaderValue, answer: &mut HeaderMap) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        answer.insert(header::VARY, HeaderValue::from_static("Origin"));
        if self.credentials {
            answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    fn preflight(&self, method: &HeaderValue, names: Option<&HeaderValue>, answer: &mut HeaderMap) {
        // With credentials a browser takes `*` for a name, so what it asked for is repeated instead.
        let any = |values: &[Box<str>]| values.iter().any(|it| &**it == "*");
        let methods = if any(&self.methods) { Some(method.clone()) } else { list(self.methods.iter()) };
        if let Some(methods) = methods {
            answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        }
        let names = if any(&self.headers) { names.cloned() } else { list(self.headers.iter()) };
        if let Some(names) = names {
            answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
        }
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age));
    }
}

impl OriginMatch {
    fn matches(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact.eq_ignore_ascii_case(origin),
            Self::Below { scheme, domain } => origin
                .strip_prefix(&**scheme)
                .and_then(|host| host.strip_suffix(&**domain))
                .is_some_and(|below| !below.is_empty() && !below.contains(['/', ':'])),
        }
    }
}

/// Names with commas between them; none where there is none.
fn list<S: AsRef<str>>(names: impl Iterator<Item = S>) -> Option<HeaderValue> {
    let text = names.fold(String::new(), |mut text, name| {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(name.as_ref());
        text
    });
    HeaderValue::try_from(text).ok().filter(|value| !value.is_empty())
}
