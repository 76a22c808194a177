//! The discovery service: authenticates streams, and runs a session for each.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::codec::Codec as _;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};
use tonic::server::NamedService;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

use super::intake::{self, Intake, Metered, NodeTurn};
use super::publisher::Publisher;
use super::reply::{Pieces, Replies};
use super::session::{Received, Session};
use super::store::Store;
use crate::auth::{Authenticate, NodeName, bearer};
use crate::proto::discovery::aggregated_discovery_service_server::SERVICE_NAME;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// The largest request: one with the versions of some 200,000 resources.
pub(super) const MAX_REQUEST: usize = 32 << 20;
/// The most streams of one node: two daemons during an upgrade, and streams that broke and have not timed
/// out.
const STREAMS_PER_NODE: usize = 8;

/// The only method that is served: the incremental protocol's.
const METHOD: &str = "DeltaAggregatedResources";

type Request = http::Request<tonic::body::Body>;
type Response = http::Response<tonic::body::Body>;

/// The service of `publisher`'s resources. Its streams end when `stopping` becomes true, and at `max_age`.
pub(super) fn discovery(
    publisher: Publisher,
    authenticate: Arc<dyn Authenticate>,
    stopping: watch::Receiver<bool>,
    max_age: Duration,
) -> Discovery {
    Discovery { publisher, authenticate, stopping, max_age, nodes: Arc::default() }
}

/// Written by hand, because tonic's generated code cannot use [`Replies`].
#[derive(Clone)]
pub(super) struct Discovery {
    publisher: Publisher,
    authenticate: Arc<dyn Authenticate>,
    stopping: watch::Receiver<bool>,
    max_age: Duration,
    nodes: Nodes,
}

impl NamedService for Discovery {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request> for Discovery {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let discovery = self.clone();
        Box::pin(async move { Ok(discovery.open(request).await.unwrap_or_else(Status::into_http)) })
    }
}

impl Discovery {
    async fn open(self, request: Request) -> Result<Response, Status> {
        let method = request.uri().path().rsplit('/').next();
        if method != Some(METHOD) {
            return Err(Status::unimplemented(format!("only the incremental protocol is served: {METHOD}")));
        }
        let (parts, body) = request.into_parts();
        let metadata = MetadataMap::from_headers(parts.headers);
        let node = self.authenticate.subscriber(bearer(&metadata)?).await?;
        let slot = Slot::take(&self.nodes, &self.publisher, node)?;
        let intake = Intake::new(self.publisher.turns().clone(), slot.turn.clone());
        let body = Metered::new(body, intake.clone());
        let mut codec = ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default();
        let requests = Streaming::new_request(codec.decoder(), body, None, Some(MAX_REQUEST));
        // At most one response waits; the session makes the next one when it has been sent.
        let (replies, receiver) = mpsc::channel(1);
        // Spread: clients that came together, as after a restart, do not leave together.
        let age = self.max_age.mul_f64(rand::random_range(0.5..1.0));
        tokio::spawn(async move {
            let conversation =
                converse(requests, replies, self.publisher, self.stopping, &slot.node, &intake);
            // The stream ends without an error: its client connects again, maybe to another replica.
            if tokio::time::timeout(age, conversation).await.is_err() {
                tracing::info!(node = %slot.node, "xDS stream ended at its maximum age");
            }
        });
        let mut response = Response::new(tonic::body::Body::new(Replies::new(receiver)));
        response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        Ok(response)
    }
}

/// The open streams of each node, and the turn that they share.
type Nodes = Arc<Mutex<HashMap<NodeName, (usize, NodeTurn)>>>;

/// A stream's slot of [`STREAMS_PER_NODE`].
struct Slot {
    node: NodeName,
    turn: NodeTurn,
    nodes: Nodes,
    publisher: Publisher,
}

impl Slot {
    fn take(nodes: &Nodes, publisher: &Publisher, node: NodeName) -> Result<Self, Status> {
        let mut streams = nodes.lock();
        let (count, turn) = streams.entry(node.clone()).or_insert_with(|| (0, intake::of_node()));
        if *count == STREAMS_PER_NODE {
            return Err(Status::resource_exhausted(format!("node {node} has {count} streams open")));
        }
        *count += 1;
        publisher.counters().clients.fetch_add(1, Ordering::Relaxed);
        let turn = turn.clone();
        Ok(Self { node, turn, nodes: nodes.clone(), publisher: publisher.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.publisher.counters().clients.fetch_sub(1, Ordering::Relaxed);
        let mut counts = self.nodes.lock();
        if let Some((count, _)) = counts.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.node);
            }
        }
    }
}

/// Runs one stream to its end.
async fn converse(
    mut requests: Streaming<DeltaDiscoveryRequest>,
    replies: mpsc::Sender<Result<Pieces, Status>>,
    publisher: Publisher,
    mut stopping: watch::Receiver<bool>,
    node: &NodeName,
    intake: &Intake,
) {
    tracing::info!(%node, "xDS client connected");
    let mut revision = publisher.watch();
    let mut client = Client { session: Session::default(), publisher: &publisher, node, intake };
    let mut look = false;
    // Before the store is ready nothing is answered.
    let mut answering = None;
    let end = loop {
        if answering.is_none() && publisher.read(Store::ready) {
            answering = Some(Instant::now());
        }
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => {
                break Some(Status::unavailable("the controller is stopping"));
            }
            () = intake.overdue(answering.unwrap_or_else(Instant::now)), if answering.is_some() => {
                break Some(intake.too_slow());
            }
            request = requests.message() => match request {
                Ok(Some(request)) => match client.receive(request) {
                    Ok(()) => look = true,
                    Err(status) => break Some(status),
                },
                Ok(None) => break None,
                Err(error) => {
                    tracing::debug!(%node, %error, "xDS client's stream failed");
                    break None;
                }
            },
            Ok(()) = revision.changed() => look = true,
            permit = replies.reserve(), if look => {
                let Ok(permit) = permit else { break None };
                match client.respond() {
                    Ok(Some(reply)) => permit.send(reply),
                    Ok(None) => look = false,
                    Err(status) => break Some(status),
                }
            }
        }
    };
    if let Some(status) = end {
        tracing::info!(%node, %status, "xDS stream ended");
        // Does not wait: a client that does not read would hold this task. The dropped channel ends the
        // stream too.
        let _ = replies.try_send(Err(status));
    } else {
        tracing::info!(%node, "xDS client disconnected");
    }
}

/// One client: its session, and what counts it.
struct Client<'a> {
    session: Session,
    publisher: &'a Publisher,
    node: &'a NodeName,
    intake: &'a Intake,
}

impl Client<'_> {
    /// Takes in a request; a violation ends the stream.
    fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let received = self.session.receive(request);
        let received = received.map_err(|violation| Status::resource_exhausted(violation.to_string()))?;
        count(self.publisher, self.node, &received);
        self.settle();
        Ok(())
    }

    /// The next response, encoded.
    fn respond(&mut self) -> Result<Option<Result<Pieces, Status>>, Status> {
        let reply = self.publisher.read(|store| self.session.next(store));
        let reply = reply.map_err(|_| Status::aborted("too far behind; connect again with what you hold"))?;
        let Some(reply) = reply else { return Ok(None) };
        let (counters, changed) = (self.publisher.counters(), &reply.changed);
        counters.sent.fetch_add(changed.put.len() as u64, Ordering::Relaxed);
        counters.removed.fetch_add(changed.removed.len() as u64, Ordering::Relaxed);
        self.settle();
        Ok(Some(reply.encode(self.publisher.whole())))
    }

    /// Gives the turn back when nothing of a large request is held any more.
    fn settle(&self) {
        if !self.session.has_claims() {
            self.intake.answered();
        }
    }
}

fn count(publisher: &Publisher, node: &NodeName, received: &Received) {
    match received {
        Received::Ack => {
            publisher.counters().acks.fetch_add(1, Ordering::Relaxed);
        }
        Received::Nack { kind, message } => {
            publisher.counters().nacks.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%node, ?kind, message, "xDS client rejected resources");
        }
        Received::Subscribed | Received::Stale | Received::Unknown => {}
    }
}
