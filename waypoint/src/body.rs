//! The bodies of requests on their way to endpoints ([`RequestBody`]) and of responses on their way to
//! clients ([`ResponseBody`]). They stream; what a retry or a mirror needs is kept up to a limit
//! ([`Recording`]). [`Payload`] is what is left of a request's body between its tries.

mod count;
mod error;
mod payload;
mod recording;
mod response;

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

pub(crate) use self::count::Count;
pub(crate) use self::error::BoxError;
pub(crate) use self::payload::Payload;
pub(crate) use self::recording::{Copied, Recording, Replay};
pub(crate) use self::response::{Delivery, ResponseBody};

/// The body of a request to an endpoint.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// None.
    Empty,
    /// As it comes from the client.
    Stream(Incoming, Count),
    /// One that may be sent again.
    Replay(Replay),
    /// A mirror's: all of it is there.
    Copy(Copied),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream(incoming, count) => {
                let frame = ready!(Pin::new(incoming).poll_frame(context));
                if let Some(Ok(frame)) = &frame {
                    count.add(frame);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Self::Replay(replay) => replay.poll_frame(context),
            Self::Copy(copied) => Poll::Ready(copied.next().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(incoming, _) => incoming.is_end_stream(),
            Self::Replay(replay) => replay.is_end_stream(),
            Self::Copy(copied) => copied.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(incoming, _) => incoming.size_hint(),
            Self::Replay(replay) => replay.size_hint(),
            Self::Copy(copied) => SizeHint::with_exact(copied.bytes()),
        }
    }
}

/// The status that a gRPC response ends with.
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.trim().parse().ok()
}
