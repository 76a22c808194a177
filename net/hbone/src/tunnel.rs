//! One open tunnel: the two halves of an HTTP/2 stream ([`Tunnel`]).

use std::fmt;

use bytes::Bytes;
use h2::{RecvStream, SendStream};

use crate::client::Slot;

/// An open tunnel, to be given to [`crate::relay::tunnel`]. Dropped before both directions have ended it is
/// reset.
pub struct Tunnel {
    pub(crate) send: SendStream<Bytes>,
    pub(crate) receive: RecvStream,
    /// How much of what is sent may wait here.
    pub(crate) send_buffer: usize,
    /// Its place on a client's connection.
    pub(crate) slot: Option<Slot>,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("stream", &self.send.stream_id()).finish_non_exhaustive()
    }
}
