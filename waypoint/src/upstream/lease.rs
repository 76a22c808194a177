//! One request's place on a connection: [`Lease`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};

use super::idle::Idle;
use super::load::Load;
use crate::body::RequestBody;
use crate::failure::Failure;

/// A connection, or a place on one, until the response has ended. Dropped before that, the request is given
/// up.
pub(crate) struct Lease {
    sender: Sender,
    /// Requests were sent on it before.
    used: bool,
    _load: Option<Load>,
}

pub(super) enum Sender {
    Http1 { sender: http1::SendRequest<RequestBody>, idle: Arc<Idle> },
    Http2 { sender: http2::SendRequest<RequestBody>, _stream: Stream },
}

/// One request of an HTTP/2 connection; it counts until this is dropped.
pub(super) struct Stream(Arc<AtomicUsize>);

/// A request without a response.
#[derive(Debug)]
pub(crate) struct Unanswered {
    pub(crate) error: SendError,
    /// The request itself, where nothing of it was sent.
    pub(crate) unsent: Option<Box<Request<RequestBody>>>,
}

/// Why there was no response.
#[derive(Debug)]
pub(crate) struct SendError(hyper::Error);

impl Lease {
    pub(super) fn new(sender: Sender, load: Option<Load>, used: bool) -> Self {
        Self { sender, used, _load: load }
    }

    pub(crate) fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2 { .. })
    }

    /// Whether the connection is older than this request.
    pub(crate) fn was_used(&self) -> bool {
        self.used
    }

    /// Sends the request, and waits for the head of its response.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let sent = match &mut self.sender {
            Sender::Http1 { sender, .. } => sender.try_send_request(request).await,
            Sender::Http2 { sender, .. } => sender.try_send_request(request).await,
        };
        sent.map_err(|mut failed| {
            let unsent = failed.take_message().map(Box::new);
            Unanswered { error: SendError(failed.into_error()), unsent }
        })
    }

    /// The response has ended in order: the connection may carry another request.
    pub(crate) fn give_back(self) {
        match self.sender {
            Sender::Http1 { sender, idle } => idle.keep(sender),
            Sender::Http2 { .. } => {}
        }
    }
}

impl Stream {
    pub(super) fn begin(streams: &Arc<AtomicUsize>) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self(streams.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SendError {
    /// Whether the connection ended without a byte of a response.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_incomplete_message() || self.0.is_canceled() || self.0.is_closed()
    }

    /// Errors of the request's own body are the client's.
    pub(crate) fn into_failure(self) -> Failure {
        let text = ambit_core::chain(&self.0);
        if self.0.is_user() { Failure::Client(text) } else { Failure::Reset(text) }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("http2", &self.is_http2())
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}
