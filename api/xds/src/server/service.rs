//! The discovery service: authenticates streams, and runs a session for each.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tonic::codec::Codec as _;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};
use tonic::server::NamedService;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

use super::publisher::Publisher;
use super::reply::{Pieces, Replies};
use super::session::{Received, Session};
use crate::auth::{Authenticate, NodeName, authenticate};
use crate::proto::discovery::aggregated_discovery_service_server::SERVICE_NAME;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// The largest request: one with the versions of some 200,000 resources.
const MAX_REQUEST: usize = 32 << 20;
/// The most streams of one node: two daemons during an upgrade, and streams that broke and have not timed
/// out.
const STREAMS_PER_NODE: usize = 8;

/// The only method that is served: the incremental protocol's.
const METHOD: &str = "DeltaAggregatedResources";

type Request = http::Request<tonic::body::Body>;
type Response = http::Response<tonic::body::Body>;

/// The service of `publisher`'s resources. Its streams end when `stopping` becomes true.
pub(super) fn discovery(
    publisher: Publisher,
    authenticate: Arc<dyn Authenticate>,
    stopping: watch::Receiver<bool>,
) -> Discovery {
    Discovery { publisher, authenticate, stopping, nodes: Arc::default() }
}

/// Written by hand, because tonic's generated code cannot use [`Replies`].
#[derive(Clone)]
pub(super) struct Discovery {
    publisher: Publisher,
    authenticate: Arc<dyn Authenticate>,
    stopping: watch::Receiver<bool>,
    nodes: Arc<Mutex<HashMap<NodeName, usize>>>,
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
        let node = authenticate(&*self.authenticate, &MetadataMap::from_headers(parts.headers)).await?;
        let slot = Slot::take(&self.nodes, &self.publisher, node)?;
        let mut codec = ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default();
        let requests = Streaming::new_request(codec.decoder(), body, None, Some(MAX_REQUEST));
        // At most one response waits; the session makes the next one when it has been sent.
        let (replies, receiver) = mpsc::channel(1);
        tokio::spawn(converse(requests, replies, self.publisher, self.stopping, slot));
        let mut response = Response::new(tonic::body::Body::new(Replies::new(receiver)));
        response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        Ok(response)
    }
}

/// A stream's slot of [`STREAMS_PER_NODE`].
struct Slot {
    node: NodeName,
    nodes: Arc<Mutex<HashMap<NodeName, usize>>>,
    publisher: Publisher,
}

impl Slot {
    fn take(
        nodes: &Arc<Mutex<HashMap<NodeName, usize>>>,
        publisher: &Publisher,
        node: NodeName,
    ) -> Result<Self, Status> {
        let mut counts = nodes.lock();
        let count = counts.entry(node.clone()).or_default();
        if *count == STREAMS_PER_NODE {
            return Err(Status::resource_exhausted(format!("node {node} has {count} streams open")));
        }
        *count += 1;
        publisher.counters().clients.fetch_add(1, Ordering::Relaxed);
        Ok(Self { node, nodes: nodes.clone(), publisher: publisher.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.publisher.counters().clients.fetch_sub(1, Ordering::Relaxed);
        let mut counts = self.nodes.lock();
        if let Some(count) = counts.get_mut(&self.node) {
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
    slot: Slot,
) {
    let node = &slot.node;
    tracing::info!(%node, "xDS client connected");
    let mut session = Session::default();
    let mut revision = publisher.watch();
    let mut look = false;
    let end = loop {
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => {
                break Some(Status::unavailable("the controller is stopping"));
            }
            request = requests.message() => match request {
                Ok(Some(request)) => match session.receive(request) {
                    Ok(received) => {
                        count(&publisher, node, &received);
                        look = true;
                    }
                    Err(violation) => break Some(Status::resource_exhausted(violation.to_string())),
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
                match publisher.read(|store| session.next(store)) {
                    Ok(Some(reply)) => {
                        let (counters, changed) = (publisher.counters(), &reply.changed);
                        counters.sent.fetch_add(changed.put.len() as u64, Ordering::Relaxed);
                        counters.removed.fetch_add(changed.removed.len() as u64, Ordering::Relaxed);
                        permit.send(reply.encode(publisher.whole()));
                    }
                    Ok(None) => look = false,
                    Err(_) => break Some(Status::aborted("too far behind; connect again with what you hold")),
                }
            }
        }
    };
    if let Some(status) = &end {
        tracing::info!(%node, %status, "xDS stream ended");
    } else {
        tracing::info!(%node, "xDS client disconnected");
    }
    if let Some(status) = end {
        // Does not wait: a client that does not read would hold this task. The dropped channel ends the
        // stream too.
        let _ = replies.try_send(Err(status));
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
