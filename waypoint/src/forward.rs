//! A request on its way to an endpoint: [`Forwarding::send`].
//!
//! endpoint → connection → send → answer; another endpoint where one cannot be reached, the request again
//! where the rule says so and the budget allows it, everything within the rule's times.

use std::sync::Arc;
use std::time::Duration;

use ambit_core::mesh::Mesh;
use ambit_core::model::WorkloadUid;
use ambit_core::outbound::Plan;
use ambit_core::route::{Retry, Rule, Timeouts};
use http::header::{CONNECTION, HOST, UPGRADE};
use http::uri::{Scheme, Uri};
use http::{HeaderValue, Method, Request, Response, Version};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout, timeout_at};
use tower::retry::budget::Budget as _;

use crate::body::{Payload, RequestBody};
use crate::endpoint::{Backend, Choosing};
use crate::failure::{Failure, Flag};
use crate::head::Head;
use crate::report::Exchange;
use crate::upgrade::Upgrade;
use crate::upstream::{self, Lease, Unanswered, Want};
use crate::worker::Worker;

/// How often a request that no endpoint has seen is sent again because its connection had just ended.
const CONNECTIONS: usize = 3;

/// An endpoint's answer, of which the body is still to come.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) lease: Lease,
    /// When all of it must have come.
    pub(crate) deadline: Option<Instant>,
}

/// A request and where it goes.
pub(crate) struct Forwarding<'a> {
    exchange: &'a mut Exchange,
    worker: Arc<Worker>,
    mesh: &'a Arc<Mesh>,
    backend: Backend,
    timeouts: Timeouts,
    retry: Option<&'a Retry>,
    /// None while it is being sent and will not be needed again.
    head: Option<Head>,
    payload: Payload,
    upgrade: Option<&'a Upgrade>,
    /// Endpoints of earlier tries.
    avoided: Vec<WorkloadUid>,
}

impl<'a> Forwarding<'a> {
    pub(crate) fn new(
        exchange: &'a mut Exchange,
        mesh: &'a Arc<Mesh>,
        backend: Backend,
        rule: Option<&'a Rule>,
        (head, payload): (Head, Payload),
        upgrade: Option<&'a Upgrade>,
    ) -> Self {
        Self {
            worker: exchange.downstream.worker.clone(),
            exchange,
            mesh,
            backend,
            timeouts: rule.map(|rule| rule.timeouts).unwrap_or_default(),
            retry: rule.and_then(|rule| rule.retry.as_ref()),
            head: Some(head),
            payload,
            upgrade,
            avoided: Vec::new(),
        }
    }

    /// Sends it until there is an answer that is good enough, or none to be had.
    pub(crate) async fn send(mut self) -> Result<Answer, Failure> {
        if let Some(service) = self.backend.as_service() {
            self.exchange.service = Some(service.clone());
        }
        let Some(until) = self.timeouts.request.map(|limit| self.exchange.since + limit) else {
            return self.tries().await;
        };
        let answer = timeout_at(until, self.tries()).await.map_err(|_| Failure::RequestTimeout)?;
        answer.map(|answer| answer.by(Some(until)))
    }

    async fn tries(&mut self) -> Result<Answer, Failure> {
        let Some(retry) = self.retry else { return self.one_try().await };
        let budget = self.worker.upstreams.budget(self.backend.key());
        budget.deposit();
        let mut number = 0;
        loop {
            let tried = self.one_try().await;
            let again = match &tried {
                Ok(answer) => retry.wants(answer.response.status()),
                Err(failure) => is_of_connection(failure),
            };
            if !again {
                return tried;
            }
            if number == retry.attempts || !self.payload.is_replayable() || !budget.withdraw() {
                self.exchange.flag = Flag::RetriesExhausted;
                return tried;
            }
            number += 1;
            // The endpoint's connection is given up with the answer.
            drop(tried);
            self.avoided.extend(self.exchange.workload.iter().map(|workload| workload.uid.clone()));
            tokio::time::sleep(jittered(retry.pause(number))).await;
        }
    }

    async fn one_try(&mut self) -> Result<Answer, Failure> {
        let Some(limit) = self.timeouts.backend_request else { return self.reach_and_send().await };
        let until = Instant::now() + limit;
        let answer = timeout_at(until, self.reach_and_send()).await.map_err(|_| Failure::BackendTimeout)?;
        answer.map(|answer| answer.by(Some(until)))
    }

    async fn reach_and_send(&mut self) -> Result<Answer, Failure> {
        for attempt in 0..CONNECTIONS {
            let mut lease = self.reach(attempt > 0).await?;
            self.exchange.tries += u32::from(attempt == 0);
            let keep = self.retry.is_some() || (lease.was_used() && self.is_repeatable());
            let request = self.request(&lease, keep)?;
            match lease.send(request).await {
                Ok(response) => return Ok(Answer { response, lease, deadline: None }),
                Err(Unanswered { unsent: Some(request), .. }) => self.restore(*request),
                // The endpoint closed a connection that it had kept while this request was on its way.
                Err(Unanswered { error, .. }) if keep && lease.was_used() && error.is_closed() => {}
                Err(Unanswered { error, .. }) => return Err(error.into_failure()),
            }
            if self.head.is_none() || matches!(self.payload, Payload::Spent) {
                break;
            }
        }
        Err(Failure::Reset("its connections end before they carry a request".to_owned()))
    }

    /// A connection to one of the backend's endpoints; a new one if `fresh`.
    async fn reach(&mut self, fresh: bool) -> Result<Lease, Failure> {
        let http2 = self.upgrade.is_none() && self.backend.is_http2(self.exchange.version);
        let want = Want { http2, fresh };
        let mut choosing = Choosing::new(&self.worker, self.mesh, &self.backend);
        loop {
            let plan = choosing.next(&self.avoided)?;
            describe(self.exchange, &plan);
            let downstream = &self.exchange.downstream;
            let lease = upstream::reach(&self.worker, downstream, (self.mesh, &plan), want);
            let made = timeout(choosing.limit(), lease).await;
            if let Some(lease) = choosing.outcome(&plan, made)? {
                return Ok(lease);
            }
        }
    }

    /// The request as the endpoint's protocol has it. It is still here afterwards if it is to be kept.
    fn request(&mut self, lease: &Lease, keep: bool) -> Result<Request<RequestBody>, Failure> {
        let head = if keep { self.head.clone() } else { self.head.take() };
        let head = head.ok_or_else(|| Failure::Reset("the request cannot be sent again".to_owned()))?;
        let body = self.payload.take(&self.exchange.request);
        let body =
            body.ok_or_else(|| Failure::Reset("the request's body cannot be sent again".to_owned()))?;
        build(head, body, lease.is_http2(), self.upgrade)
    }

    /// Takes back a request that was not sent.
    fn restore(&mut self, request: Request<RequestBody>) {
        let (parts, body) = request.into_parts();
        if let RequestBody::Stream(incoming, _) = body {
            self.payload = Payload::Stream(incoming);
        }
        if self.head.is_none() {
            self.head = restored(parts);
        }
    }

    /// Whether it does no harm to send it twice, and all of it is here.
    fn is_repeatable(&self) -> bool {
        let idempotent = self.head.as_ref().is_some_and(|head| head.method.is_idempotent());
        idempotent && matches!(self.payload, Payload::Empty)
    }
}

impl Answer {
    /// The earlier of two deadlines holds.
    fn by(self, deadline: Option<Instant>) -> Self {
        let deadline = self.deadline.into_iter().chain(deadline).min();
        Self { deadline, ..self }
    }
}

/// Names the endpoint in the report.
fn describe(exchange: &mut Exchange, plan: &Plan) {
    exchange.workload = plan.destination().cloned();
    exchange.endpoint = Some(upstream::address(plan));
}

/// Whether the endpoint failed rather than answered: with a `retry` these are tried again whatever its codes.
fn is_of_connection(failure: &Failure) -> bool {
    matches!(failure, Failure::Connect(_) | Failure::Reset(_) | Failure::BackendTimeout)
}

/// At least the pause, and up to a half more, so that clients that failed together do not return together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + rand::random::<f64>() / 2.0)
}

/// A request as HTTP/1 (origin form and `Host`) or HTTP/2 (whole URI) has it.
pub(crate) fn build(
    head: Head,
    body: RequestBody,
    http2: bool,
    upgrade: Option<&Upgrade>,
) -> Result<Request<RequestBody>, Failure> {
    let Head { method, path, authority, mut headers } = head;
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path);
    headers.remove(HOST);
    if http2 {
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(authority.ok_or(Failure::BadRequest("no host"))?);
    } else if let Some(authority) = authority {
        let host = HeaderValue::try_from(authority.as_str())
            .map_err(|_| Failure::BadRequest("host is not valid"))?;
        headers.insert(HOST, host);
    }
    if let Some(Upgrade { protocol, .. }) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| Failure::BadRequest("path is not valid"))?;
    *request.version_mut() = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    *request.headers_mut() = headers;
    Ok(request)
}

/// The head of a request that [`build`] has made.
fn restored(parts: http::request::Parts) -> Option<Head> {
    let authority = match parts.uri.authority() {
        Some(authority) => Some(authority.clone()),
        None => parts.headers.get(HOST).and_then(|host| host.as_bytes().try_into().ok()),
    };
    let path = parts.uri.path_and_query()?.clone();
    let method: Method = parts.method;
    Some(Head { method, path, authority, headers: parts.headers })
}
