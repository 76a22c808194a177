//! The body of a response, which carries the request's report to its end: [`ResponseBody`].

use std::fmt;
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::{BoxError, grpc_status};
use crate::failure::Failure;
use crate::report::Exchange;
use crate::upstream::Lease;

/// The body of a response to a client.
pub(crate) struct ResponseBody {
    source: Source,
    /// Until the response has ended.
    delivery: Option<Box<Delivery>>,
}

enum Source {
    Text(Bytes),
    Incoming(Incoming),
}

/// What a response holds until it is delivered.
pub(crate) struct Delivery {
    pub(crate) exchange: Box<Exchange>,
    /// Its place at the endpoint.
    pub(crate) lease: Option<Lease>,
    /// When the whole response must have been sent.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Delivery {
    pub(crate) fn new(exchange: Box<Exchange>, lease: Option<Lease>, deadline: Option<Instant>) -> Self {
        let deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        Self { exchange, lease, deadline }
    }
}

impl ResponseBody {
    /// A text of the waypoint's own.
    pub(crate) fn text(text: impl Into<Bytes>, delivery: Delivery) -> Self {
        Self { source: Source::Text(text.into()), delivery: Some(Box::new(delivery)) }
    }

    /// None, of a response that somebody else reports.
    pub(crate) fn none() -> Self {
        Self { source: Source::Text(Bytes::new()), delivery: None }
    }

    /// An endpoint's.
    pub(crate) fn stream(incoming: Incoming, delivery: Delivery) -> Self {
        Self { source: Source::Incoming(incoming), delivery: Some(Box::new(delivery)) }
    }

    /// The whole response has been handed over.
    fn end(&mut self) {
        if let Some(delivery) = self.delivery.take() {
            let Delivery { mut exchange, lease, .. } = *delivery;
            exchange.delivered();
            if let Some(lease) = lease {
                lease.give_back();
            }
        }
    }

    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let deadline = self.delivery.as_mut().and_then(|delivery| delivery.deadline.as_mut());
        deadline.is_some_and(|deadline| deadline.as_mut().poll(context).is_ready())
    }

    fn count(&mut self, frame: &Frame<Bytes>) {
        let Some(delivery) = &mut self.delivery else { return };
        if let Some(data) = frame.data_ref() {
            delivery.exchange.response_bytes += data.len() as u64;
        }
        if let Some(trailers) = frame.trailers_ref() {
            delivery.exchange.grpc_status = grpc_status(trailers).or(delivery.exchange.grpc_status);
        }
    }

    fn fail(&mut self, failure: &Failure) -> BoxError {
        let error = failure.to_string();
        if let Some(mut delivery) = self.delivery.take() {
            delivery.exchange.broke(failure);
        }
        error.into()
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.is_late(context) {
            return Poll::Ready(Some(Err(self.fail(&Failure::RequestTimeout))));
        }
        let frame = match &mut self.source {
            Source::Text(text) if text.is_empty() => None,
            Source::Text(text) => Some(Ok(Frame::data(std::mem::take(text)))),
            Source::Incoming(incoming) => ready!(Pin::new(incoming).poll_frame(context)),
        };
        match frame {
            Some(Ok(frame)) => {
                self.count(&frame);
                if frame.is_trailers() || self.source.is_end_stream() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let failure = Failure::Reset(ambit_core::chain(&error));
                Poll::Ready(Some(Err(self.fail(&failure))))
            }
            None => {
                self.end();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Text(text) => SizeHint::with_exact(text.len() as u64),
            Source::Incoming(incoming) => incoming.size_hint(),
        }
    }
}

impl Source {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Incoming(incoming) => incoming.is_end_stream(),
        }
    }
}

impl Drop for ResponseBody {
    /// A body that has nothing (more) to give is dropped without being asked; any other was given up by the
    /// client.
    fn drop(&mut self) {
        if self.source.is_end_stream() {
            self.end();
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("delivered", &self.delivery.is_none()).finish_non_exhaustive()
    }
}
