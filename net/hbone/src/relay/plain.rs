//! Between two TCP connections, with the same promises as a tunnel: [`tcp`].

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::net::TcpStream;

use super::read::read;
use super::socket::{ResetOnDrop, failure};
use super::{End, Outcome, Traffic, socket};
use crate::scratch::CHUNK;

/// Carries bytes between two connections until both directions have ended or one of them is reset. Dropped
/// before that, both are reset.
pub async fn tcp(first: TcpStream, second: TcpStream, traffic: &Traffic) -> Outcome {
    let (mut first, mut second) = (ResetOnDrop::new(first), ResetOnDrop::new(second));
    let end = {
        let (mut up, mut down) = (Direction::default(), Direction::default());
        let mut first_failure = pin!(failure(&first));
        let mut second_failure = pin!(failure(&second));
        poll_fn(|context| {
            let sent = |count| traffic.add_sent(count);
            let received = |count| traffic.add_received(count);
            // What came before a reset goes on before it.
            if let Poll::Ready(error) = first_failure.as_mut().poll(context) {
                up.source_failed = true;
                let _late = up.poll(context, &first, &second, sent);
                return Poll::Ready(End::Tcp(error));
            }
            if let Poll::Ready(error) = second_failure.as_mut().poll(context) {
                down.source_failed = true;
                let _late = down.poll(context, &second, &first, received);
                return Poll::Ready(End::OtherTcp(error));
            }
            let up_ended = match up.poll(context, &first, &second, sent) {
                Poll::Ready(Err(Failed::Reader(error))) => return Poll::Ready(End::Tcp(error)),
                Poll::Ready(Err(Failed::Writer(error))) => {
                    down.source_failed = true;
                    let _late = down.poll(context, &second, &first, received);
                    return Poll::Ready(End::OtherTcp(error));
                }
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            match ready!(down.poll(context, &second, &first, received)) {
                Ok(()) if up_ended => Poll::Ready(End::Closed),
                Ok(()) => Poll::Pending,
                Err(Failed::Reader(error)) => Poll::Ready(End::OtherTcp(error)),
                Err(Failed::Writer(error)) => {
                    up.source_failed = true;
                    let _late = up.poll(context, &first, &second, sent);
                    Poll::Ready(End::Tcp(error))
                }
            }
        })
        .await
    };
    if end.is_clean() {
        first.close();
        second.close();
    }
    Outcome { sent: traffic.sent(), received: traffic.received(), end }
}

enum Failed {
    Reader(std::io::Error),
    Writer(std::io::Error),
}

/// One of the two directions.
#[derive(Default)]
struct Direction {
    /// Read and not yet written.
    pending: Bytes,
    read_end: bool,
    ended: bool,
    /// The error of the socket that is read from has been taken: reading will say that this is the end, and
    /// it is not.
    source_failed: bool,
}

impl Direction {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        count: impl Fn(usize),
    ) -> Poll<Result<(), Failed>> {
        while !self.ended {
            if !self.pending.is_empty() {
                let written = ready!(socket::write(to, context, &self.pending)).map_err(Failed::Writer)?;
                self.pending.advance(written);
                count(written);
            } else if self.read_end {
                socket::end(to).map_err(Failed::Writer)?;
                self.ended = true;
            } else {
                // Lets go of what was written.
                self.pending = Bytes::new();
                self.pending = ready!(read(from, context, CHUNK)).map_err(Failed::Reader)?;
                if self.pending.is_empty() && self.source_failed {
                    return Poll::Pending;
                }
                self.read_end = self.pending.is_empty();
            }
        }
        Poll::Ready(Ok(()))
    }
}
