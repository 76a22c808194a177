//! Read-ahead buffer below rustls, which reads one record at a time: [`ReadAhead`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::scratch::{self, AHEAD};

/// Reads in a row. Then it yields, so that the tasks that consume the data can run: until they do, h2 holds
/// the data, and it ends a connection for which it holds too many small frames.
const BURST: u8 = 2;

/// A TCP connection that holds memory only while it holds data.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    socket: TcpStream,
    /// Data, and how much of it has been taken. Not `advance`d: the memory would come back smaller.
    ahead: Option<(BytesMut, usize)>,
    /// Reads since it last yielded.
    burst: u8,
}

impl ReadAhead {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket, ahead: None, burst: 0 }
    }
}

impl ReadAhead {
    fn poll_ahead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<BytesMut>> {
        if self.burst == BURST {
            self.burst = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let read = scratch::poll_read(&self.socket, context, AHEAD);
        self.burst = if read.is_pending() { 0 } else { self.burst + 1 };
        read
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (ahead, taken) = match self.ahead.take() {
            Some(ahead) => ahead,
            None => (ready!(self.poll_ahead(context))?, 0),
        };
        let until = ahead.len().min(taken + buffer.remaining());
        buffer.put_slice(&ahead[taken..until]);
        if until == ahead.len() {
            scratch::give_back(ahead);
        } else {
            self.ahead = Some((ahead, until));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
