//! A response on its way out: what a session says, and the bytes of it. Resources are encoded once, when they
//! are published, and whoever is sent everything there is shares one piece of memory with all others who are.

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
use crate::resource::{Encoded, ResourceType};

/// What a session says to its client.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) type_url: String,
    pub(super) nonce: String,
    pub(super) changed: Changed,
    /// It has all resources of a type as of a revision of the store: what every client without any is sent.
    pub(super) whole: Option<(ResourceType, u64)>,
}

/// By type, all its resources as of a revision: the last that were asked for.
#[derive(Debug, Default)]
pub(super) struct Whole(Mutex<[Option<(u64, Bytes)>; 2]>);

/// A gRPC message in two pieces.
#[derive(Debug)]
pub(super) struct Pieces {
    head: Bytes,
    resources: Bytes,
}

impl Reply {
    /// Its bytes. An error if gRPC cannot frame so many (4 GiB).
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
        // Held while joining: the others who wait here want the same.
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

/// A stream's response body: replies as they come, then the status. tonic's own would keep the room of its
/// largest message for as long as the stream lives.
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
            tracing::error!(%status, %other, "status of an xDS stream");
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

#[cfg(test)]
impl Pieces {
    /// The message that a client reads.
    pub(super) fn decode(&self) -> DeltaDiscoveryResponse {
        let length = u32::from_be_bytes(self.head[1..5].try_into().expect("four bytes"));
        let message = [&self.head[5..], &self.resources].concat();
        assert_eq!((self.head[0], length as usize), (0, message.len()), "the frame");
        DeltaDiscoveryResponse::decode(message.as_slice()).expect("a response")
    }

    /// Where its resources lie.
    pub(super) fn place(&self) -> *const u8 {
        self.resources.as_ptr()
    }
}
