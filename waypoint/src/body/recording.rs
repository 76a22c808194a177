//! A request's body that is kept while it streams, up to a limit: [`Recording`]. A retry reads it again from
//! the start ([`Replay`]); a mirror gets a copy once all of it has come ([`Copied`]).

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{BoxError, Count};

/// What is kept of one request. A longer body is sent once and not mirrored.
pub(crate) const MOST: usize = 256 << 10;

/// A body that is being read and kept.
#[derive(Debug)]
pub(crate) struct Recording(Arc<Mutex<Shared>>);

/// Reads a recorded body from its start. Only the newest one goes on reading from the client.
#[derive(Debug)]
pub(crate) struct Replay {
    shared: Arc<Mutex<Shared>>,
    reader: u32,
    next: usize,
    trailers_given: bool,
    size: SizeHint,
}

/// All of a body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copied {
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
}

struct Shared {
    incoming: Incoming,
    count: Count,
    /// The client's body as it was announced.
    size: SizeHint,
    /// The newest reader.
    reader: u32,
    chunks: Vec<Bytes>,
    kept: usize,
    /// There was more than is kept, and nothing is kept any more.
    overflowed: bool,
    ended: bool,
    trailers: Option<HeaderMap>,
    copies: Vec<oneshot::Sender<Copied>>,
}

impl Recording {
    pub(crate) fn new(incoming: Incoming, count: Count) -> Self {
        let size = incoming.size_hint();
        let mut shared = Shared {
            ended: incoming.is_end_stream(),
            incoming,
            count,
            size,
            reader: 0,
            chunks: Vec::new(),
            kept: 0,
            overflowed: false,
            trailers: None,
            copies: Vec::new(),
        };
        shared.overflowed = shared.size.lower() > MOST as u64;
        Self(Arc::new(Mutex::new(shared)))
    }

    /// A reader from the start; earlier ones read no more. `None` when it was too long to be kept and has
    /// been read.
    pub(crate) fn replay(&self) -> Option<Replay> {
        let mut shared = self.0.lock();
        if shared.overflowed && shared.reader > 0 {
            return None;
        }
        shared.reader += 1;
        let (reader, size) = (shared.reader, shared.size);
        Some(Replay { shared: self.0.clone(), reader, next: 0, trailers_given: false, size })
    }

    /// Whether it can no longer be read from the start.
    pub(crate) fn is_lost(&self) -> bool {
        let shared = self.0.lock();
        shared.overflowed && shared.reader > 0
    }

    /// Gets a copy when all of the body has come; nothing when it is too long, or breaks off.
    pub(crate) fn copy(&self) -> oneshot::Receiver<Copied> {
        let (sender, receiver) = oneshot::channel();
        let mut shared = self.0.lock();
        if !shared.overflowed {
            shared.copies.push(sender);
        }
        if shared.ended {
            shared.end();
        }
        receiver
    }
}

impl Replay {
    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let shared = &mut *self.shared.lock();
        if shared.reader != self.reader {
            return Poll::Ready(Some(Err("the request was tried again".into())));
        }
        if !shared.overflowed
            && let Some(chunk) = shared.chunks.get(self.next)
        {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if !shared.ended {
            match ready!(shared.poll_incoming(context)) {
                Some(Ok(data)) => {
                    self.next += 1;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {}
            }
        }
        let trailers = shared.trailers.clone().filter(|_| !self.trailers_given);
        self.trailers_given = true;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let shared = self.shared.lock();
        let no_trailers = self.trailers_given || shared.trailers.is_none();
        shared.ended && no_trailers && (shared.overflowed || self.next >= shared.chunks.len())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.size
    }
}

impl Shared {
    /// The next data of the client's; `None` at the end, trailers included.
    fn poll_incoming(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.incoming).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.copies.clear();
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    self.end();
                    return Poll::Ready(None);
                }
            };
            self.count.add(&frame);
            match frame.into_data() {
                Ok(data) => {
                    self.keep(&data);
                    // It is not asked again where its length was announced.
                    if self.incoming.is_end_stream() {
                        self.end();
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Err(other) => {
                    if let Ok(trailers) = other.into_trailers() {
                        self.trailers = Some(trailers);
                        self.end();
                        return Poll::Ready(None);
                    }
                }
            }
        }
    }

    fn keep(&mut self, data: &Bytes) {
        if self.overflowed {
            return;
        }
        self.kept += data.len();
        if self.kept > MOST {
            self.overflowed = true;
            self.chunks = Vec::new();
            self.copies.clear();
        } else {
            self.chunks.push(data.clone());
        }
    }

    fn end(&mut self) {
        self.ended = true;
        for copy in self.copies.drain(..) {
            let copied =
                Copied { chunks: self.chunks.iter().cloned().collect(), trailers: self.trailers.clone() };
            // Nobody may want it any more.
            let _ = copy.send(copied);
        }
    }
}

impl Copied {
    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        let data = self.chunks.pop_front().map(Frame::data);
        data.or_else(|| self.trailers.take().map(Frame::trailers))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.trailers.is_none()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("kept", &self.kept).field("ended", &self.ended).finish_non_exhaustive()
    }
}
