//! From the tunnel into the application's socket ([`Downward`]).
//!
//! Flow-control window is released only after the socket has accepted the data.

use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use super::outcome::End;
use super::socket;
use super::traffic::Traffic;
use crate::tunnel::Received;

pub(super) struct Downward {
    received: Received,
    /// The socket has been shut down for writing.
    ended: bool,
}

impl Downward {
    pub(super) fn new(received: Received) -> Self {
        Self { received, ended: false }
    }

    /// Carries what can be carried; ready when the peer has ended its direction and the socket was shut
    /// down.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        socket: &TcpStream,
        traffic: &Traffic,
    ) -> Poll<Result<(), End>> {
        while !self.ended {
            if ready!(self.received.poll_next(context)).map_err(End::of_tunnel)? {
                ready!(self.write(context, socket, traffic))?;
            } else {
                socket::end(socket).map_err(End::First)?;
                self.ended = true;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn write(
        &mut self,
        context: &mut Context<'_>,
        socket: &TcpStream,
        traffic: &Traffic,
    ) -> Poll<Result<(), End>> {
        let Poll::Ready(written) = socket::write(socket, context, self.received.current()) else {
            self.received.gather(context).map_err(End::of_tunnel)?;
            return Poll::Pending;
        };
        let count = written.map_err(End::First)?;
        self.received.consume(count);
        traffic.add_received(count);
        Poll::Ready(Ok(()))
    }
}
