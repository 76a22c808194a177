//! The life of a request: [`serve`], from its head to the answer.
//!
//! host and path → route → permit → filters → backend → [`forward`] → answer. Every failure on the way is a
//! [`Failure`], which has a status.

use std::borrow::Cow;
use std::sync::Arc;

use ambit_core::fronted::Fronted;
use ambit_core::mesh::Mesh;
use ambit_core::route::{self, Found, HeaderChange, Target as BackendTarget, normalized};
use http::header::{CONNECTION, VARY};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::body::{Delivery, Payload, Recording, ResponseBody};
use crate::downstream::Downstream;
use crate::endpoint::Backend;
use crate::failure::Failure;
use crate::filters::{self, Passed, Step};
use crate::forward::{Answer, Forwarding};
use crate::head::{Head, with_path};
use crate::headers::{self, Target};
use crate::report::Exchange;
use crate::upgrade::{self, Upgrade};
use crate::waypoint::routes;
use crate::{mirror, reply};

/// Answers one request.
pub(crate) async fn serve(downstream: Arc<Downstream>, request: Request<Incoming>) -> Response<ResponseBody> {
    let mut exchange = Exchange::begin(downstream.clone(), &request);
    let version = request.version();
    let upgrade = request.extensions().get::<OnUpgrade>().cloned();
    let mut response = match respond(&mut exchange, request).await {
        Ok(Outcome::Own { status, headers }) => reply::answer(exchange, status, headers, ""),
        Ok(Outcome::Endpoint { answer, upgrade }) => deliver(exchange, answer, upgrade),
        Err(failure) => reply::failure(exchange, &failure),
    };
    let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if let Some(upgrade) = upgrade.filter(|_| !is_upgrade) {
        upgrade::decline(upgrade);
    }
    if version < Version::HTTP_2 && !is_upgrade && downstream.worker.waypoint.proxy.drain.is_started() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Who answers.
enum Outcome {
    /// A rule does, without a backend.
    Own {
        status: StatusCode,
        headers: HeaderMap,
    },
    Endpoint {
        answer: Answer,
        upgrade: Option<Upgrade>,
    },
}

async fn respond(exchange: &mut Exchange, request: Request<Incoming>) -> Result<Outcome, Failure> {
    let downstream = exchange.downstream.clone();
    let mesh = downstream.worker.waypoint.proxy.mesh.mesh().ok_or(Failure::NotSynchronized)?;
    let (mut parts, body) = request.into_parts();
    let target = Target::of(&parts)?;
    exchange.host = target.authority.as_ref().map(|it| it.as_str().into());
    let upgrade = upgrade::wanted(&mut parts);
    headers::request(&mut parts.headers, &downstream);
    let mut head = head(parts, target)?;

    let found = find(&mesh, &downstream, &head)?;
    permit(exchange, &head)?;
    let passed = match &found {
        Some(found) => {
            exchange.route = Some(found.route.key.clone());
            match filters::apply(found, &mut head, &downstream)? {
                Step::Answer { status, headers } => return Ok(Outcome::Own { status, headers }),
                Step::Pass(passed) => passed,
            }
        }
        None => Passed::default(),
    };
    let (backend, changes) = backend(&mesh, &downstream, found.as_ref())?;
    let rule = found.map(|found| found.rule);
    let payload = payload(exchange, body, rule.is_some_and(|rule| rule.retry.is_some()), &passed);
    for mirrored in &passed.mirrors {
        mirror::send(exchange, &mesh, mirrored, &head, &payload);
    }
    for change in changes.request {
        change.apply(&mut head.headers);
    }
    let forwarding = Forwarding::new(exchange, &mesh, backend, rule, (head, payload), upgrade.as_ref());
    let mut answer = forwarding.send().await?;
    finish_head(answer.response.headers_mut(), &passed, changes.response);
    Ok(Outcome::Endpoint { answer, upgrade })
}

/// Path and host in one form: escapes and dot segments may not lead around a rule, here or behind.
fn head(parts: Parts, target: Target) -> Result<Head, Failure> {
    let Parts { method, uri, headers, .. } = parts;
    let asked = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let path = match normalized(asked.path()) {
        Cow::Borrowed(_) => asked,
        Cow::Owned(path) => with_path(&asked, &path)?,
    };
    Ok(Head { method, path, authority: target.authority, headers })
}

/// The rule for a request; none where the dialled port has no routes, and the request goes to what was
/// dialled.
fn find<'a>(mesh: &'a Mesh, downstream: &Downstream, head: &Head) -> Result<Option<Found<'a>>, Failure> {
    let Fronted::Service { service, port } = &downstream.fronted else { return Ok(None) };
    let Some(table) = routes(mesh, &service.key, *port, &downstream.identity.namespace) else {
        return Ok(None);
    };
    let facts = route::Request {
        method: &head.method,
        path: head.path.path(),
        query: head.path.query(),
        headers: &head.headers,
    };
    table.find(&facts).map(Some).ok_or(Failure::NoRoute)
}

/// THE PLACE of authentication (RequestAuthentication), authorization with HTTP attributes and rate limits,
/// in this order. Nothing stands here yet: what a waypoint's policies would refuse is not refused by this
/// version. Policies of the connection are enforced at the destination.
#[expect(clippy::unnecessary_wraps, reason = "the policies that stand here refuse")]
fn permit(_exchange: &Exchange, _head: &Head) -> Result<(), Failure> {
    Ok(())
}

/// Changes of headers that a backend asks for.
#[derive(Default)]
struct BackendChanges<'a> {
    request: &'a [HeaderChange],
    response: &'a [HeaderChange],
}

fn backend<'a>(
    mesh: &Mesh,
    downstream: &Downstream,
    found: Option<&Found<'a>>,
) -> Result<(Backend, BackendChanges<'a>), Failure> {
    let Some(found) = found else { return Ok((Backend::dialled(downstream), BackendChanges::default())) };
    let chosen = found.rule.backends.pick(rand::random()).ok_or(Failure::NoBackend)?;
    let changes = BackendChanges { request: &chosen.request_headers, response: &chosen.response_headers };
    match &chosen.target {
        BackendTarget::Invalid { reason } => Err(Failure::InvalidBackend(reason.clone())),
        BackendTarget::Service { service, port } => {
            Ok((Backend::service(mesh, downstream, service, *port)?, changes))
        }
    }
}

/// Kept only where it may be needed again.
fn payload(exchange: &Exchange, body: Incoming, retries: bool, passed: &Passed<'_>) -> Payload {
    if body.is_end_stream() {
        Payload::Empty
    } else if retries || !passed.mirrors.is_empty() {
        Payload::Recorded(Recording::new(body, exchange.request.clone()))
    } else {
        Payload::Stream(body)
    }
}

/// What rule and backend make of a response's head.
fn finish_head(headers: &mut HeaderMap, passed: &Passed<'_>, backend: &[HeaderChange]) {
    for change in backend.iter().chain(passed.response.iter().copied()) {
        change.apply(headers);
    }
    for (name, value) in passed.cors.iter().flatten() {
        if name == VARY {
            headers.append(name, value.clone());
        } else {
            headers.insert(name, value.clone());
        }
    }
}

/// Hands an endpoint's response over; its report is made when its body has ended.
fn deliver(mut exchange: Box<Exchange>, answer: Answer, upgrade: Option<Upgrade>) -> Response<ResponseBody> {
    let Answer { mut response, lease, deadline } = answer;
    exchange.status = Some(response.status());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return match upgrade {
            Some(upgrade) => upgrade::switch(exchange, response, lease, upgrade),
            None => reply::failure(exchange, &Failure::Reset("it switches protocols unasked".to_owned())),
        };
    }
    exchange.grpc_status = crate::body::grpc_status(response.headers());
    headers::response(response.headers_mut());
    let delivery = Delivery::new(exchange, Some(lease), deadline);
    let (mut head, body) = response.into_parts();
    head.extensions.clear();
    head.version = Version::HTTP_11;
    Response::from_parts(head, ResponseBody::stream(body, delivery))
}
