//! How the HTTP/2 under tunnels is set up: [`Http2`].

use std::time::Duration;

/// The largest window that HTTP/2 knows.
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// Windows, frames, limits and times of an HTTP/2 connection. The same for both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http2 {
    /// Receive window of one stream, in bytes.
    pub stream_window: u32,
    /// The largest frame we accept.
    pub frame_size: u32,
    /// How many bytes of one tunnel may wait here to be written to the peer.
    pub send_buffer: usize,
    /// Tunnels on one connection.
    pub streams: u32,
    /// The largest head of a request or response, in bytes.
    pub header_size: u32,
    /// Streams that were reset and are remembered, and those reset before they were accepted: a peer that
    /// makes more is cut off.
    pub resets: usize,
    /// How often the peer is pinged.
    pub ping_interval: Duration,
    /// How long an answer to a ping may take.
    pub ping_timeout: Duration,
    /// How long a connection without a tunnel is kept.
    pub idle_timeout: Duration,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            stream_window: 1 << 20,
            frame_size: 256 << 10,
            send_buffer: 256 << 10,
            streams: 100,
            header_size: 16 << 10,
            resets: 100,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_mins(1),
        }
    }
}

impl Http2 {
    /// The widest window of the connection, in bytes: the sum of all stream windows, so that streams whose
    /// readers have stopped do not stop the others. It becomes as wide as that only while the workload has
    /// room for it ([`crate::memory`]).
    pub(crate) fn connection_window(&self) -> u32 {
        self.stream_window.saturating_mul(self.streams).min(MAX_WINDOW)
    }

    /// Limit on the overhead of unread small frames, as h2 counts it (256 bytes each): as much as the window.
    /// Relays read them also while their socket accepts no data, as soon as they are polled.
    pub(crate) fn frame_budget(&self) -> usize {
        self.connection_window() as usize
    }
}
