//! Streams from clients under HTTP and TCP: [`Downlink`], with what was read ahead, and [`Guarded`], which
//! ends one that is too slow.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ambit_hbone::Tunnel;
use ambit_hbone::relay::Side;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::downstream::Downstream;

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

/// Fails a connection whose client is too slow over the head of a request: it would hold its place for
/// nothing.
pub(crate) struct Guarded<L> {
    link: L,
    downstream: Arc<Downstream>,
    /// For a whole head, from its first byte on.
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    /// How many requests there were when the head began.
    begun: u64,
}

impl<L> Guarded<L> {
    pub(crate) fn new(link: L, downstream: Arc<Downstream>, limit: Duration) -> Self {
        Self { link, downstream, limit, deadline: None, begun: 0 }
    }

    fn is_too_late(&mut self, context: &mut Context<'_>) -> bool {
        if !self.downstream.is_idle() || self.downstream.begun() != self.begun {
            self.deadline = None;
        }
        self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready())
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
        if self.is_too_late(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let more = buffer.filled().len() > before;
        if more && self.deadline.is_none() && self.downstream.is_idle() {
            let mut deadline = Box::pin(tokio::time::sleep_until(Instant::now() + self.limit));
            // Asked once, so that it wakes this task.
            let _pending = deadline.as_mut().poll(context);
            self.deadline = Some(deadline);
            self.begun = self.downstream.begun();
        }
        read
    }
}

impl<L: AsyncWrite + Unpin> AsyncWrite for Guarded<L> {
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

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_shutdown(context)
    }
}
