//! A tunnel as a stream of bytes: [`AsyncRead`] and [`AsyncWrite`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Tunnel, io_error};
use crate::scratch::CHUNK;

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() > 0 && ready!(self.received.poll_next(context)).map_err(io_error)? {
            let current = self.received.current();
            let count = current.len().min(buffer.remaining());
            buffer.put_slice(&current[..count]);
            self.received.consume(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let room = ready!(self.poll_room(context, bytes.len()))?;
        let count = room.min(bytes.len());
        self.send_piece(Bytes::copy_from_slice(&bytes[..count]), count == bytes.len())?;
        Poll::Ready(Ok(count))
    }

    /// What was written is sent by the connection's task as soon as the peer has room.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end())
    }
}

impl Tunnel {
    /// Writes what there is room for without a copy, and takes it off `bytes`.
    pub(crate) fn poll_write_bytes(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<io::Result<usize>> {
        let room = ready!(self.poll_room(context, bytes.len()))?;
        let piece = bytes.split_to(room.min(bytes.len()));
        let count = piece.len();
        self.send_piece(piece, bytes.is_empty())?;
        Poll::Ready(Ok(count))
    }

    /// Ends this side's direction. Again is harmless.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.sent_end, true) {
            return Ok(());
        }
        self.give_back();
        self.send.send_data(Bytes::new(), true).map_err(io_error)
    }

    /// Whether the peer has reset the stream, or the connection has failed.
    pub(crate) fn poll_failure(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        self.send.poll_reset(context).map(|reset| io_error(reset.map_or_else(|error| error, h2::Error::from)))
    }

    /// How many bytes can be sent now, of as many as are `wanted`.
    fn poll_room(&mut self, context: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        if self.sent_end {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        if let Poll::Ready(error) = self.poll_failure(context) {
            return Poll::Ready(Err(error));
        }
        let wanted = wanted.min(CHUNK);
        if self.send.capacity() < wanted {
            self.send.reserve_capacity(wanted);
            self.reserved = true;
        }
        loop {
            let room = self.send.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            // Says only what has changed since it was asked last, and that may be nothing by now.
            match ready!(self.send.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
    }

    /// `last`: the writer has no more for now. What it has not used of the room is given back: the
    /// connection's window is shared by all of its tunnels.
    fn send_piece(&mut self, bytes: Bytes, last: bool) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.send.send_data(bytes, false).map_err(io_error)?;
        if last {
            self.give_back();
        }
        Ok(())
    }

    fn give_back(&mut self) {
        if std::mem::take(&mut self.reserved) {
            self.send.reserve_capacity(0);
        }
    }
}
