//! Responses and their bytes. Resources are encoded once, when they are published. Responses with all
//! resources share one buffer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::{Body, Frame};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::codegen::http::HeaderMap;

use super::store::Changed;
use crate::proto::discovery::DeltaDiscoveryResponse;
use crate::resource::{COUNT, Encoded, ResourceType};

/// A response of a session.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) type_url: String,
    pub(super) nonce: String,
    pub(super) changed: Changed,
    /// Set if it has all resources of a type as of a revision of the store, as for every new client.
    pub(super) whole: Option<(ResourceType, u64)>,
}

/// The encoded resources of each type as of a revision: the last that was sent.
#[derive(Debug, Default)]
pub(super) struct Whole(Mutex<[Option<(u64, Bytes)>; COUNT]>);

/// A gRPC message in two buffers.
#[derive(Debug)]
pub(super) struct Pieces {
    head: Bytes,
    resources: Bytes,
}

impl Reply {
    /// Encodes it. Fails if it exceeds gRPC's frame size (4 GiB).
    pub(super) fn encode(&self, whole: &Whole) -> Result<Pieces, Status> {
        let own = DeltaDiscoveryResponse {
            type_url: self.type_url.clone(),
            nonce: self.nonce.clone(),
            removed_resources: self.changed.removed.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        let resources = match self.whole {
            Some((kind, revision)) => whole.get(kind, revision, &self.changed.put),
            None => join(&self.changed.put),
        };
        let Ok(length) = u32::try_from(own.encoded_len() + resources.len()) else {
            return Err(Status::out_of_range("the response is larger than 4 GiB"));
        };
        let mut head = BytesMut::with_capacity(5 + own.encoded_len());
        head.put_u8(0);
        head.put_u32(length);
        own.encode_raw(&mut head);
        Ok(Pieces { head: head.freeze(), resources })
    }
}

impl Whole {
    fn get(&self, kind: ResourceType, revision: u64, all: &[Arc<Encoded>]) -> Bytes {
        // Locked while joining: other sessions that wait need the same bytes.
        let mut held = self.0.lock();
        let held = &mut held[kind.index()];
        match held {
            Some((at, bytes)) if *at == revision => bytes.clone(),
            _ => held.insert((revision, join(all))).1.clone(),
        }
    }
}

fn join(resources: &[Arc<Encoded>]) -> Bytes {
    let length = resources.iter().map(|resource| resource.response.len()).sum();
    let mut bytes = BytesMut::with_capacity(length);
    for resource in resources {
        bytes.extend_from_slice(&resource.response);
    }
    bytes.freeze()
}

/// The response body of a stream: replies, then the status. tonic's own body keeps a buffer of its largest
/// message's size for the life of the stream.
#[derive(Debug)]
pub(super) struct Replies {
    from: mpsc::Receiver<Result<Pieces, Status>>,
    resources: Option<Bytes>,
    ended: bool,
}

impl Replies {
    pub(super) fn new(from: mpsc::Receiver<Result<Pieces, Status>>) -> Self {
        Self { from, resources: None, ended: false }
    }
}

impl Body for Replies {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(resources) = self.resources.take() {
            return Poll::Ready(Some(Ok(Frame::data(resources))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.from.poll_recv(context)) {
            Some(Ok(Pieces { head, resources })) => {
                self.resources = (!resources.is_empty()).then_some(resources);
                return Poll::Ready(Some(Ok(Frame::data(head))));
            }
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        if let Err(other) = status.add_header(&mut trailers) {
            tracing::error!(%status, error = %other, "failed to encode status of xDS stream");
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

#[cfg(test)]
impl Pieces {
    /// Decodes the message, as a client does.
    pub(super) fn decode(&self) -> DeltaDiscoveryResponse {
        let length = u32::from_be_bytes(self.head[1..5].try_into().expect("four bytes"));
        let message = [&self.head[5..], &self.resources].concat();
        assert_eq!((self.head[0], length as usize), (0, message.len()), "the frame");
        DeltaDiscoveryResponse::decode(message.as_slice()).expect("a response")
    }

    /// The address of its resources.
    pub(super) fn address(&self) -> *const u8 {
        self.resources.as_ptr()
    }
}
