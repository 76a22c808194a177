//! Copies of requests: [`send`]. A mirror never delays or fails the request that it is a copy of: it is sent
//! when the request's body has gone to its own endpoint, and its answer is thrown away.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::mesh::Mesh;
use ambit_core::route::{Mirror, Target};
use http::Version;
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::body::{Copied, Payload, RequestBody};
use crate::downstream::Downstream;
use crate::endpoint::{Backend, Choosing};
use crate::failure::Failure;
use crate::forward::build;
use crate::head::Head;
use crate::metrics::MIRRORED;
use crate::report::Exchange;
use crate::upstream::{self, Want};

/// How long a copy may take, from its request's beginning on.
const MOST: Duration = Duration::from_mins(1);

/// Sends a copy of a request whose body is recorded or empty.
pub(crate) fn send(exchange: &Exchange, mesh: &Arc<Mesh>, mirror: &Mirror, head: &Head, payload: &Payload) {
    let downstream = exchange.downstream.clone();
    let Target::Service { service, port } = &mirror.target else { return MIRRORED.count(["invalid"]) };
    let Ok(backend) = Backend::service(mesh, &downstream, service, *port) else {
        return MIRRORED.count(["invalid"]);
    };
    let Ok(permit) = downstream.worker.mirrors.clone().try_acquire_owned() else {
        return MIRRORED.count(["overflow"]);
    };
    let body = match payload {
        Payload::Recorded(recording) => Some(recording.copy()),
        Payload::Empty | Payload::Stream(_) | Payload::Spent => None,
    };
    let copy =
        Copy { downstream, mesh: mesh.clone(), backend, head: head.clone(), version: exchange.version };
    tokio::spawn(async move {
        let _permit = permit;
        let outcome = match timeout(MOST, copy.deliver(body)).await {
            Ok(Ok(())) => "sent",
            Ok(Err(error)) => {
                tracing::debug!(error = ambit_core::chain(&error), "failed to send a mirrored request");
                "failed"
            }
            Err(_) => "failed",
        };
        MIRRORED.count([outcome]);
    });
}

/// A copy on its way.
struct Copy {
    downstream: Arc<Downstream>,
    mesh: Arc<Mesh>,
    backend: Backend,
    head: Head,
    version: Version,
}

impl Copy {
    async fn deliver(self, body: Option<oneshot::Receiver<Copied>>) -> Result<(), Failure> {
        let body = match body {
            Some(body) => {
                let copied = body.await;
                copied.map_err(|_| {
                    Failure::Client("the body broke off, or was too long to be copied".to_owned())
                })?
            }
            None => Copied::default(),
        };
        let body = if body.is_empty() { RequestBody::Empty } else { RequestBody::Copy(body) };
        let worker = &self.downstream.worker;
        let want = Want { http2: self.backend.is_http2(self.version), fresh: false };
        let mut choosing = Choosing::new(worker, &self.mesh, &self.backend);
        let mut lease = loop {
            let plan = choosing.next(&[])?;
            let lease = upstream::reach(worker, &self.downstream, (&self.mesh, &plan), want);
            if let Some(lease) = choosing.outcome(&plan, timeout(choosing.limit(), lease).await)? {
                break lease;
            }
        };
        let request = build(self.head, body, lease.is_http2(), None)?;
        let response = lease.send(request).await.map_err(|unanswered| unanswered.error.into_failure())?;
        discard(response.into_body()).await?;
        lease.give_back();
        Ok(())
    }
}

async fn discard(mut body: Incoming) -> Result<(), Failure> {
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        frame.map_err(|error| Failure::Reset(ambit_core::chain(&error)))?;
    }
    Ok(())
}
