//! Between any two streams: [`streams`], and [`tcp`] and [`socket`] where TCP connections are among them.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::outcome::{End, Outcome};
use super::side::Side;
use super::socket::{ResetOnDrop, SocketSide, failure};
use super::traffic::Traffic;
use crate::memory::Pending;

/// How long what was read last may take to get on its way before a reset overtakes it.
pub(super) const RESET_GRACE: Duration = Duration::from_millis(200);

/// Carries bytes between two streams until both directions have ended or one of them has failed; then the
/// other is reset. Dropped before that, both are dropped.
pub async fn streams(mut first: impl Side, mut second: impl Side, traffic: &Traffic) -> Outcome {
    let end = carry(&mut first, &mut second, traffic).await;
    Outcome::new(traffic, end)
}

/// Carries bytes between a TCP connection and any other stream. Dropped before both directions have ended,
/// the connection is reset.
pub async fn socket(first: TcpStream, mut second: impl Side, traffic: &Traffic) -> Outcome {
    let mut first = ResetOnDrop::new(first);
    let end = {
        let failure = pin!(failure(&first));
        carry(&mut SocketSide::new(&first, failure), &mut second, traffic).await
    };
    if end.is_clean() {
        first.close();
    }
    Outcome::new(traffic, end)
}

/// Carries bytes between two TCP connections until both directions have ended or one of them is reset.
/// Dropped before that, both are reset.
pub async fn tcp(first: TcpStream, second: TcpStream, traffic: &Traffic) -> Outcome {
    let (mut first, mut second) = (ResetOnDrop::new(first), ResetOnDrop::new(second));
    let end = {
        let (one, other) = (pin!(failure(&first)), pin!(failure(&second)));
        let (mut one, mut other) = (SocketSide::new(&first, one), SocketSide::new(&second, other));
        carry(&mut one, &mut other, traffic).await
    };
    if end.is_clean() {
        first.close();
        second.close();
    }
    Outcome::new(traffic, end)
}

async fn carry(first: &mut impl Side, second: &mut impl Side, traffic: &Traffic) -> End {
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let end = poll_fn(|context| {
        let sent = |count| traffic.add_sent(count);
        let received = |count| traffic.add_received(count);
        // What came before a failure goes on before it, also below.
        let up_ended = match up.poll(context, first, second, sent) {
            Poll::Ready(Err(Failed::Reader(error))) => return Poll::Ready(End::of_first(error)),
            Poll::Ready(Err(Failed::Writer(error))) => {
                down.source_failed = true;
                let _late = down.poll(context, second, first, received);
                return Poll::Ready(End::of_second(error));
            }
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        match down.poll(context, second, first, received) {
            Poll::Ready(Err(Failed::Reader(error))) => return Poll::Ready(End::of_second(error)),
            Poll::Ready(Err(Failed::Writer(error))) => {
                up.source_failed = true;
                let _late = up.poll(context, first, second, sent);
                return Poll::Ready(End::of_first(error));
            }
            Poll::Ready(Ok(())) if up_ended => return Poll::Ready(End::Closed),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if let Poll::Ready(error) = first.poll_failure(context) {
            up.source_failed = true;
            let _late = up.poll(context, first, second, sent);
            return Poll::Ready(End::of_first(error));
        }
        if let Poll::Ready(error) = second.poll_failure(context) {
            down.source_failed = true;
            let _late = down.poll(context, second, first, received);
            return Poll::Ready(End::of_second(error));
        }
        Poll::Pending
    })
    .await;
    if !end.is_clean() {
        // A reset drops what still waits to be written.
        let sent = poll_fn(|context| {
            let (one, other) = (first.poll_sent(context), second.poll_sent(context));
            if one.is_ready() && other.is_ready() { Poll::Ready(()) } else { Poll::Pending }
        });
        let _late = tokio::time::timeout(RESET_GRACE, sent).await;
        first.reset();
        second.reset();
    }
    end
}

enum Failed {
    Reader(io::Error),
    Writer(io::Error),
}

/// One of the two directions.
#[derive(Default)]
struct Direction {
    /// Read and not yet written.
    pending: Bytes,
    /// The same, while the writer takes nothing.
    waiting: Pending,
    /// Written and perhaps not yet on its way.
    unflushed: bool,
    read_end: bool,
    ended: bool,
    /// The error of the stream that is read from has been taken: reading may say that this is the end, and
    /// it is not.
    source_failed: bool,
}

impl Direction {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &mut impl Side,
        to: &mut impl Side,
        count: impl Fn(usize),
    ) -> Poll<Result<(), Failed>> {
        while !self.ended {
            if !self.pending.is_empty() {
                let Poll::Ready(written) = to.poll_write(context, &mut self.pending) else {
                    self.waiting.set(self.pending.len());
                    return Poll::Pending;
                };
                count(written.map_err(Failed::Writer)?);
                self.waiting.set(0);
                self.unflushed = true;
            } else if self.read_end {
                ready!(to.poll_end(context)).map_err(Failed::Writer)?;
                self.ended = true;
            } else {
                ready!(self.read(context, from, to))?;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn read(
        &mut self,
        context: &mut Context<'_>,
        from: &mut impl Side,
        to: &mut impl Side,
    ) -> Poll<Result<(), Failed>> {
        // Lets go of what was written.
        self.pending = Bytes::new();
        let Poll::Ready(bytes) = from.poll_read(context).map_err(Failed::Reader)? else {
            if self.unflushed {
                ready!(to.poll_flush(context)).map_err(Failed::Writer)?;
                self.unflushed = false;
            }
            return Poll::Pending;
        };
        if bytes.is_empty() && self.source_failed {
            return Poll::Pending;
        }
        self.read_end = bytes.is_empty();
        self.pending = bytes;
        Poll::Ready(Ok(()))
    }
}
