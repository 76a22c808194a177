//! What a rule's filters make of a request, before a backend is chosen: [`apply`].

use ambit_core::route::{
    Authority, CorsAnswer, Filter, Found, HeaderChange, Mirror, Redirect, Rewrite, Scheme,
};
use http::header::LOCATION;
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::downstream::Downstream;
use crate::failure::Failure;
use crate::head::{Head, with_path};

/// What filters leave of a request.
pub(crate) enum Step<'a> {
    /// It is answered.
    Answer { status: StatusCode, headers: HeaderMap },
    /// It goes to a backend.
    Pass(Passed<'a>),
}

/// What is still to be done for a request that goes to a backend.
#[derive(Default)]
pub(crate) struct Passed<'a> {
    /// Changes of its response.
    pub(crate) response: Vec<&'a HeaderChange>,
    /// Headers of its response for another origin.
    pub(crate) cors: Option<HeaderMap>,
    /// Who gets a copy.
    pub(crate) mirrors: Vec<&'a Mirror>,
}

/// Applies a rule's filters in their order.
pub(crate) fn apply<'a>(
    found: &Found<'a>,
    head: &mut Head,
    downstream: &Downstream,
) -> Result<Step<'a>, Failure> {
    let mut passed = Passed::default();
    for filter in &found.rule.filters {
        match filter {
            Filter::RequestHeaders(change) => change.apply(&mut head.headers),
            Filter::ResponseHeaders(change) => passed.response.push(change),
            Filter::Redirect(redirect) => return redirected(redirect, found, head, downstream),
            Filter::Rewrite(rewrite) => rewrite_target(rewrite, found, head)?,
            Filter::Mirror(mirror) if mirror.takes(rand::random()) => passed.mirrors.push(mirror),
            Filter::Mirror(_) => {}
            Filter::Cors(cors) => match cors.answer(&head.method, &head.headers) {
                CorsAnswer::Nothing => {}
                CorsAnswer::Preflight(headers) => {
                    return Ok(Step::Answer { status: StatusCode::NO_CONTENT, headers });
                }
                CorsAnswer::Response(headers) => passed.cors = Some(headers),
            },
        }
    }
    Ok(Step::Pass(passed))
}

fn redirected<'a>(
    redirect: &Redirect,
    found: &Found<'_>,
    head: &Head,
    downstream: &Downstream,
) -> Result<Step<'a>, Failure> {
    let host = head.authority.as_ref().map(http::uri::Authority::host);
    let host = host.or(redirect.hostname.as_deref()).ok_or(Failure::BadRequest("no host"))?;
    let asked = Authority { scheme: Scheme::Http, host, port: downstream.dialled.port() };
    let location = redirect.location(asked, head.path.path(), head.path.query(), &found.matched.path);
    let location = HeaderValue::try_from(location).map_err(|_| Failure::BadRequest("path is not valid"))?;
    let headers = HeaderMap::from_iter([(LOCATION, location)]);
    Ok(Step::Answer { status: redirect.status.code(), headers })
}

fn rewrite_target(rewrite: &Rewrite, found: &Found<'_>, head: &mut Head) -> Result<(), Failure> {
    if let Some(hostname) = &rewrite.hostname {
        let host =
            hostname.parse().map_err(|_| Failure::InvalidBackend("rewritten host is not valid".into()))?;
        head.authority = Some(host);
    }
    if let Some(path) = &rewrite.path {
        let path = path.apply(head.path.path(), &found.matched.path);
        head.path = with_path(&head.path, &path)?;
    }
    Ok(())
}
