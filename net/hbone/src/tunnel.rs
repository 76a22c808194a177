//! One open tunnel: the two halves of an HTTP/2 stream ([`Tunnel`]), read and written like any stream.

mod backlog;
mod received;
mod stream;

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::{fmt, io};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

pub(crate) use self::received::Received;
use crate::client::shared::Slot;
use crate::memory::Inflow;

/// An open tunnel: read and written like a TCP connection, or given to [`crate::relay::tunnel`].
///
/// The peer gets room for more bytes as the reader takes them. Shutting it down ends this side's direction
/// and leaves the other open. Dropped before both directions have ended, the tunnel is reset, and what was
/// written but is not yet on its way is lost: shut it down and read to the end instead. After a reset or the
/// end of the HBONE connection, reading and writing fail with an error that holds the [`h2::Error`].
///
/// A reader that stops reading for long must go on polling it where the peer may send many small pieces:
/// HTTP/2 counts frames that are not fetched, and ends the connection when there are too many. The relays do
/// so.
pub struct Tunnel {
    pub(crate) send: SendStream<Bytes>,
    pub(crate) received: Received,
    /// How many bytes of what is sent may wait here.
    pub(crate) send_buffer: usize,
    /// Its place on a client's connection.
    pub(crate) slot: Option<Slot>,
    /// This side's direction has ended.
    pub(crate) sent_end: bool,
    /// Room was asked for and may not have been used.
    reserved: bool,
}

impl Tunnel {
    pub(crate) fn new(
        send: SendStream<Bytes>,
        receive: RecvStream,
        send_buffer: usize,
        slot: Option<Slot>,
        inflow: Arc<Inflow>,
    ) -> Self {
        let received = Received::new(receive, inflow);
        Self { send, received, send_buffer, slot, sent_end: false, reserved: false }
    }
}

/// Resolves when everything that was sent is on its way: there is room again for as much as may wait here.
/// (If the peer gives less room than that, it never resolves.)
pub(crate) fn poll_flushed(
    send: &mut SendStream<Bytes>,
    send_buffer: usize,
    context: &mut Context<'_>,
) -> Poll<()> {
    send.reserve_capacity(send_buffer);
    while send.capacity() < send_buffer {
        if !matches!(ready!(send.poll_capacity(context)), Some(Ok(_))) {
            return Poll::Ready(());
        }
    }
    Poll::Ready(())
}

/// The error of a stream as I/O reports it; [`io::Error::downcast`] gives the original back.
pub(crate) fn io_error(error: h2::Error) -> io::Error {
    let kind = match error.get_io() {
        Some(inner) => inner.kind(),
        None if reset_reason(&error).is_some() => io::ErrorKind::ConnectionReset,
        None => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, error)
}

/// Why the peer reset the stream, if that is what the error says.
pub(crate) fn reset_reason(error: &h2::Error) -> Option<Reason> {
    error.reason().filter(|_| !error.is_go_away())
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("stream", &self.send.stream_id()).finish_non_exhaustive()
    }
}
