//! Streams from clients under HTTP and TCP: [`Downlink`], with what was read ahead, and [`Guarded`], which
//! ends one that is too slow.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ambit_hbone::Tunnel;
use ambit_hbone::relay::Side;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::downstream::Downstream;

/// How long a client may take to end its side of a connection that the waypoint has ended.
const LINGER: Duration = Duration::from_secs(2);

/// A client's tunnel, of which the first bytes were read already.
pub(crate) struct Downlink {
    first: Bytes,
    tunnel: Tunnel,
}

impl Downlink {
    pub(crate) fn new(first: Bytes, tunnel: Tunnel) -> Self {
        Self { first, tunnel }
    }
}

impl AsyncRead for Downlink {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.tunnel).poll_read(context, buffer);
        }
        let count = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Downlink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tunnel).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tunnel).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tunnel).poll_shutdown(context)
    }
}

impl Side for Downlink {
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if self.first.is_empty() {
            return Side::poll_read(&mut self.tunnel, context);
        }
        Poll::Ready(Ok(std::mem::take(&mut self.first)))
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        Side::poll_write(&mut self.tunnel, context, bytes)
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tunnel.poll_end(context)
    }

    fn poll_failure(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        Side::poll_failure(&mut self.tunnel, context)
    }

    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.tunnel.poll_sent(context)
    }

    fn reset(&mut self) {
        self.tunnel.reset();
    }
}

/// How long a client's connection may wait for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For a whole head, from its first byte on.
    pub(crate) head: Duration,
    /// For a request.
    pub(crate) idle: Duration,
}

/// Fails a connection whose client is too slow over the head of a request, or has none for long: it would
/// hold its place for nothing.
///
/// There is one timer, which is set anew when it has run out and seldom before: a timer for each request
/// would cost more than the rest of its reading. So an idle connection ends between one and two of its
/// times.
pub(crate) struct Guarded<L> {
    link: L,
    downstream: Arc<Downstream>,
    patience: Patience,
    /// When the head that has begun must be whole.
    head: Option<Instant>,
    /// How many requests there were when the head began.
    begun: u64,
    timer: Pin<Box<Sleep>>,
    /// How many requests there had been when the timer was set for a connection without a request.
    seen: Option<u64>,
    /// Set once our side has ended: until when the client may end its own.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<L> Guarded<L> {
    pub(crate) fn new(link: L, downstream: Arc<Downstream>, patience: Patience) -> Self {
        let timer = Box::pin(tokio::time::sleep(patience.idle));
        Self { link, downstream, patience, head: None, begun: 0, timer, seen: Some(0), linger: None }
    }

    /// Notes that bytes have come, or none.
    fn note(&mut self, more: bool) {
        let (idle, begun) = (self.downstream.is_idle(), self.downstream.begun());
        if !idle || begun != self.begun {
            self.head = None;
        }
        if more && idle && self.head.is_none() {
            self.head = Some(Instant::now() + self.patience.head);
            self.begun = begun;
        }
    }

    /// Whether the client has had its time. The task wakes when that may have changed.
    fn is_too_late(&mut self, context: &mut Context<'_>) -> bool {
        if let Some(head) = self.head.filter(|head| *head < self.timer.deadline()) {
            self.timer.as_mut().reset(head);
            self.seen = None;
        }
        while self.timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let idle = self.downstream.is_idle().then(|| self.downstream.begun());
            let next = match self.head {
                Some(head) if head <= now => return true,
                Some(head) => head,
                None if idle.is_some() && self.seen == idle => return true,
                None => now + self.patience.idle,
            };
            self.seen = idle.filter(|_| self.head.is_none());
            self.timer.as_mut().reset(next);
        }
        false
    }
}

impl<L: AsyncRead + Unpin> AsyncRead for Guarded<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.link).poll_read(context, buffer);
        let more = buffer.filled().len() > before;
        self.note(more);
        if self.is_too_late(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<L: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<L> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.link).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_flush(context)
    }

    /// Ends our side, and waits for the client to end its own. To close at once would reset a client that has
    /// its answer and ends its request only now. After an upgrade the client's bytes are somebody's still.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { link, linger, downstream, .. } = &mut *self;
        if downstream.is_switched() {
            return Pin::new(link).poll_shutdown(context);
        }
        if linger.is_none() {
            ready!(Pin::new(&mut *link).poll_shutdown(context))?;
        }
        let linger = linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut bytes = [0; 1024];
        while linger.as_mut().poll(context).is_pending() {
            let mut rest = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut *link).poll_read(context, &mut rest));
            if read.is_err() || rest.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}
