//! Carries bytes between a TCP connection and a tunnel ([`tunnel`]), or between two TCP connections
//! ([`tcp`]).
//!
//! What an application may rely on is kept: the end of one direction leaves the other open, whatever was sent
//! before an end arrives, a reset on one side becomes a reset on the other, and a reader that stops makes the
//! writer stop. Nothing is held while nothing moves: data is read into memory that belongs to the thread,
//! when there is data and room for it on the other side.

mod backlog;
mod downward;
mod plain;
mod read;
mod socket;
mod upward;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use h2::Reason;
use tokio::net::TcpStream;

use self::downward::Downward;
pub use self::plain::tcp;
use self::socket::{ResetOnDrop, failure};
use self::upward::Upward;
use crate::Tunnel;

/// How many bytes have been carried; can be read while the relay runs.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    /// From the (first) TCP connection to the tunnel (the second one).
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The other way.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// What was carried, and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub sent: u64,
    pub received: u64,
    pub end: End,
}

/// How a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both directions came to their ends.
    Closed,
    /// The (first) TCP connection was reset or failed; the other side was reset.
    Tcp(io::Error),
    /// The connection under the tunnel failed; the TCP connection was reset.
    Tunnel(h2::Error),
    /// The peer reset the tunnel; the TCP connection was reset.
    TunnelReset(Reason),
    /// The second TCP connection was reset or failed; the first was reset.
    OtherTcp(io::Error),
}

impl End {
    /// Whether no side was reset.
    pub fn is_clean(&self) -> bool {
        matches!(self, Self::Closed)
    }

    fn of_tunnel(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::TunnelReset(reason),
            _ => Self::Tunnel(error),
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Tcp(error) => write!(f, "connection reset: {error}"),
            Self::Tunnel(error) => write!(f, "tunnel broke: {error}"),
            Self::TunnelReset(reason) => write!(f, "tunnel reset: {reason}"),
            Self::OtherTcp(error) => write!(f, "other connection reset: {error}"),
        }
    }
}

/// How long what was read last may take to get on its way before a reset overtakes it.
const RESET_GRACE: Duration = Duration::from_millis(200);

/// Carries bytes until both directions have ended or one side is reset. Dropped before that, both sides are
/// reset.
pub async fn tunnel(tcp: TcpStream, tunnel: Tunnel, traffic: &Traffic) -> Outcome {
    let mut tcp = ResetOnDrop::new(tcp);
    let Tunnel { send, receive, send_buffer, slot } = tunnel;
    let mut upward = Upward::new(send, send_buffer);
    let end = {
        let mut downward = Downward::new(receive);
        // Noticed also while nothing is read or written because the other side has no room.
        let mut tcp_failure = pin!(failure(&tcp));
        poll_fn(|context| {
            let down = downward.poll(context, &tcp, traffic);
            if matches!(down, Poll::Ready(Err(End::Tcp(_)))) {
                upward.fail();
            }
            let up = upward.poll(context, &tcp, traffic);
            match (down, up) {
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Closed),
                (Poll::Ready(Err(end)), _) => return Poll::Ready(end),
                (_, Poll::Ready(Err(end))) => {
                    // What came before the reset is delivered before it.
                    let _late = downward.poll(context, &tcp, traffic);
                    return Poll::Ready(end);
                }
                _ => {}
            }
            let error = ready!(tcp_failure.as_mut().poll(context));
            upward.fail();
            let _late = upward.poll(context, &tcp, traffic);
            Poll::Ready(End::Tcp(error))
        })
        .await
    };
    match end {
        End::Closed => tcp.close(),
        End::Tcp(_) => {
            // A reset drops what still waits to be written.
            let flushed = poll_fn(|context| upward.poll_flushed(context));
            let _late = tokio::time::timeout(RESET_GRACE, flushed).await;
            upward.reset();
        }
        End::Tunnel(_) | End::TunnelReset(_) | End::OtherTcp(_) => {}
    }
    drop(slot);
    Outcome { sent: traffic.sent(), received: traffic.received(), end }
}
