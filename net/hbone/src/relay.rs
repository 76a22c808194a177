//! Carries bytes between a TCP connection and a tunnel ([`tunnel`]), two TCP connections ([`tcp`]), or any
//! two streams ([`socket`], [`streams`]).
//!
//! What an application may rely on is kept: the end of one direction leaves the other open, whatever was sent
//! before an end arrives, a reset on one side becomes a reset on the other, and a reader that stops makes the
//! writer stop. Nothing is held while nothing moves: data is read into memory that belongs to the thread.
//! [`tunnel`], which nearly every connection takes, reads only when there is room on the other side as well.

mod downward;
mod outcome;
mod read;
mod side;
mod socket;
mod streams;
mod traffic;
mod upward;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, ready};

use socket2::SockRef;
use tokio::net::TcpStream;

use self::downward::Downward;
pub use self::outcome::{End, Outcome};
pub use self::side::{AnyStream, Side};
use self::socket::{ResetOnDrop, failure};
use self::streams::RESET_GRACE;
pub use self::streams::{socket, streams, tcp};
pub use self::traffic::Traffic;
use self::upward::Upward;
use crate::Tunnel;
use crate::memory::Relayed;

/// Carries bytes until both directions have ended or one side is reset. Dropped before that, both sides are
/// reset.
pub async fn tunnel(tcp: TcpStream, tunnel: Tunnel, traffic: &Traffic) -> Outcome {
    let mut tcp = ResetOnDrop::new(tcp);
    let Tunnel { send, received, send_buffer, slot, sent_end, .. } = tunnel;
    let (_relayed, buffer) = Relayed::new(received.account());
    if let Some(size) = buffer {
        // What an application does not read waits in the kernel as well. Fails only for a connection that is
        // gone.
        let _gone = SockRef::from(&*tcp).set_send_buffer_size(size);
    }
    let mut upward = Upward::new(send, send_buffer, sent_end);
    let end = {
        let mut downward = Downward::new(received);
        // Noticed also while nothing is read or written because the other side has no room.
        let mut tcp_failure = pin!(failure(&tcp));
        poll_fn(|context| {
            let down = downward.poll(context, &tcp, traffic);
            if matches!(down, Poll::Ready(Err(End::First(_)))) {
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
            Poll::Ready(End::First(error))
        })
        .await
    };
    match end {
        End::Closed => tcp.close(),
        End::First(_) => {
            // A reset drops what still waits to be written.
            let flushed = poll_fn(|context| upward.poll_flushed(context));
            let _late = tokio::time::timeout(RESET_GRACE, flushed).await;
            upward.reset();
        }
        End::Tunnel(_) | End::TunnelReset(_) | End::Second(_) => {}
    }
    drop(slot);
    Outcome::new(traffic, end)
}
