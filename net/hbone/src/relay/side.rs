//! What a relay carries bytes between: the trait [`Side`], and [`AnyStream`], which makes any stream one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite};

use super::read;
use crate::tunnel::{Tunnel, io_error, poll_flushed};

/// One side of a relay: a stream of bytes both ways.
///
/// A side that is dropped before both of its directions have ended must not look to its peer as if they had:
/// a [`Tunnel`] resets its stream. Any other stream is wrapped in [`AnyStream`].
pub trait Side {
    /// The next piece; an empty one is the end.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>>;

    /// Writes as much as the stream takes, removes it from `bytes` and returns its length.
    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>>;

    /// Ends the direction that is written to; the other stays open.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Flushes a stream that buffers writes. Called when there is no more to write for now.
    fn poll_flush(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ready when the stream has failed, noticed also while nothing can be read or written because the other
    /// side takes nothing.
    fn poll_failure(&mut self, _context: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }

    /// Ready when a reset would no longer overtake what was written.
    fn poll_sent(&mut self, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// Resets the stream at once, if dropping it does not.
    fn reset(&mut self) {}
}

impl Side for Tunnel {
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let more = ready!(self.received.poll_next(context)).map_err(io_error)?;
        Poll::Ready(Ok(if more { self.received.take() } else { Bytes::new() }))
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        self.poll_write_bytes(context, bytes)
    }

    fn poll_end(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end())
    }

    /// Also drains received data: see [`Tunnel`].
    fn poll_failure(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        match self.received.gather(context) {
            Ok(()) => Self::poll_failure(self, context),
            Err(error) => Poll::Ready(io_error(error)),
        }
    }

    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.sent_end {
            return Poll::Ready(());
        }
        poll_flushed(&mut self.send, self.send_buffer, context)
    }

    fn reset(&mut self) {
        self.send.send_reset(Reason::CANCEL);
    }
}

/// Any stream as a side of a relay, without its memory while nothing moves. What its peer sees when the relay
/// drops it is up to the stream.
#[derive(Debug)]
pub struct AnyStream<S>(pub S);

impl<S: AsyncRead + AsyncWrite + Unpin> Side for AnyStream<S> {
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        read::stream(&mut self.0, context)
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.0).poll_write(context, bytes))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        bytes.advance(count);
        Poll::Ready(Ok(count))
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
}
