//! The discovery service: authenticates a stream, then moves requests and responses between it and its session.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::publisher::Publisher;
use super::session::{Heard, Session};
use crate::auth::{Authenticate, NodeName, authenticate};
use crate::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

/// The largest request: a claim of some 200,000 resources.
const MAX_REQUEST: usize = 32 << 20;
/// Streams of one node at once: two daemons during an upgrade, and those that a broken network has not ended yet.
const STREAMS_PER_NODE: usize = 8;

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service over what `publisher` holds; its streams end when `stopping` becomes true.
pub(super) fn discovery(
    publisher: Publisher,
    authenticate: Arc<dyn Authenticate>,
    stopping: watch::Receiver<bool>,
) -> AggregatedDiscoveryServiceServer<Discovery> {
    let nodes = Arc::default();
    AggregatedDiscoveryServiceServer::new(Discovery { publisher, authenticate, stopping, nodes })
        .max_decoding_message_size(MAX_REQUEST)
}

pub(super) struct Discovery {
    publisher: Publisher,
    authenticate: Arc<dyn Authenticate>,
    stopping: watch::Receiver<bool>,
    nodes: Arc<Mutex<HashMap<NodeName, usize>>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only the incremental protocol is served: DeltaAggregatedResources"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let node = authenticate(&*self.authenticate, request.metadata()).await?;
        let place = Place::take(&self.nodes, &self.publisher, node)?;
        // One response waits here at most; the session makes the next when this one has left.
        let (responses, receiver) = mpsc::channel(1);
        tokio::spawn(converse(
            request.into_inner(),
            responses,
            self.publisher.clone(),
            self.stopping.clone(),
            place,
        ));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// A stream's place among its node's.
struct Place {
    node: NodeName,
    nodes: Arc<Mutex<HashMap<NodeName, usize>>>,
    publisher: Publisher,
}

impl Place {
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

impl Drop for Place {
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
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    publisher: Publisher,
    mut stopping: watch::Receiver<bool>,
    place: Place,
) {
    let node = &place.node;
    tracing::info!(%node, "xDS client connected");
    let mut session = Session::default();
    let mut revision = publisher.watch();
    let mut look = false;
    let end = loop {
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => break Some(Status::unavailable("the controller is stopping")),
            request = requests.message() => match request {
                Ok(Some(request)) => match session.receive(request) {
                    Ok(heard) => {
                        note(&publisher, node, &heard);
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
            place = responses.reserve(), if look => {
                let Ok(place) = place else { break None };
                match publisher.read(|store| session.next(store)) {
                    Ok(Some(response)) => {
                        let counters = publisher.counters();
                        counters.sent.fetch_add(response.resources.len() as u64, Ordering::Relaxed);
                        counters.removed.fetch_add(response.removed_resources.len() as u64, Ordering::Relaxed);
                        place.send(Ok(response));
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
        // Not waiting: a client that does not read would hold this task, and the dropped channel ends its stream too.
        let _ = responses.try_send(Err(status));
    }
}

fn note(publisher: &Publisher, node: &NodeName, heard: &Heard) {
    match heard {
        Heard::Ack => {
            publisher.counters().acks.fetch_add(1, Ordering::Relaxed);
        }
        Heard::Nack { kind, message } => {
            publisher.counters().nacks.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%node, ?kind, message, "xDS client refused resources");
        }
        Heard::Subscribed | Heard::Stale | Heard::Foreign => {}
    }
}
