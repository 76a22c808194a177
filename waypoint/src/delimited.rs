//! HTTP/1 from a client, of which hyper sees only what has one reading: [`Delimited`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::downstream::Downstream;
use crate::framing::{Fault, Framing, Part};
use crate::metrics::AMBIGUOUS;

/// What hyper is given in place of a head that is refused: no head may contain it, so hyper answers 400,
/// after the answers of earlier requests, and closes. The empty line has it look at once.
const UNREADABLE: &[u8] = b"\0\r\n\r\n";

/// Breaks off requests that could be read in two ways.
pub(crate) struct Delimited<L> {
    link: L,
    downstream: Arc<Downstream>,
    framing: Framing,
    /// Once a request is refused, what is still to be given of it; nothing of the client's follows.
    refused: Option<&'static [u8]>,
}

impl<L> Delimited<L> {
    pub(crate) fn new(link: L, downstream: Arc<Downstream>) -> Self {
        Self { link, downstream, framing: Framing::default(), refused: None }
    }

    /// Takes back what was read (from `before` on) but may not be used.
    fn refuse(&mut self, fault: Fault, before: usize, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        AMBIGUOUS.count();
        tracing::debug!(client = %self.downstream.client, "refused a request with more than one reading");
        buffer.set_filled(before + fault.at);
        let rest = self.refused.insert(match fault.within {
            Part::Head => UNREADABLE,
            Part::Body => &[],
        });
        if fault.at == 0 { give(rest, buffer) } else { Ok(()) }
    }
}

/// Gives what is left of a refused request, and then fails.
fn give(rest: &mut &'static [u8], buffer: &mut ReadBuf<'_>) -> io::Result<()> {
    if rest.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a request with more than one reading"));
    }
    let (given, left) = rest.split_at(rest.len().min(buffer.remaining()));
    buffer.put_slice(given);
    *rest = left;
    Ok(())
}

impl<L: AsyncRead + Unpin> AsyncRead for Delimited<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(rest) = &mut self.refused {
            return Poll::Ready(give(rest, buffer));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.link).poll_read(context, buffer))?;
        // After an upgrade it is no longer HTTP.
        if !self.downstream.is_switched()
            && let Err(fault) = self.framing.check(&buffer.filled()[before..])
        {
            return Poll::Ready(self.refuse(fault, before, buffer));
        }
        Poll::Ready(Ok(()))
    }
}

impl<L: AsyncWrite + Unpin> AsyncWrite for Delimited<L> {
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
