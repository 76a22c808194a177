//! From the tunnel into the application's socket ([`Downward`]).
//!
//! The peer is given room for more only when the socket has taken what came.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::RecvStream;
use tokio::net::TcpStream;

use super::backlog::Backlog;
use super::{End, Traffic, socket};

pub(super) struct Downward {
    receive: RecvStream,
    /// Being written.
    current: Bytes,
    /// To be written after that, when the socket takes nothing.
    backlog: Option<Box<Backlog>>,
    /// The peer has ended its direction.
    received_end: bool,
    /// The socket has been told.
    ended: bool,
}

impl Downward {
    pub(super) fn new(receive: RecvStream) -> Self {
        Self { receive, current: Bytes::new(), backlog: None, received_end: false, ended: false }
    }

    /// Carries what can be carried; ready when the peer has ended its direction and the socket was told.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        socket: &TcpStream,
        traffic: &Traffic,
    ) -> Poll<Result<(), End>> {
        while !self.ended {
            if self.next(context)? {
                ready!(self.write(context, socket, traffic))?;
            } else if self.received_end {
                socket::end(socket).map_err(End::Tcp)?;
                self.ended = true;
            } else {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether there is something to write.
    fn next(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        if self.current.is_empty() {
            match self.backlog.as_mut().and_then(|backlog| backlog.pop()) {
                Some(bytes) => self.current = bytes,
                None => self.backlog = None,
            }
        }
        while self.current.is_empty() {
            match self.receive(context)? {
                Some(bytes) => self.current = bytes,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn write(
        &mut self,
        context: &mut Context<'_>,
        socket: &TcpStream,
        traffic: &Traffic,
    ) -> Poll<Result<(), End>> {
        let Poll::Ready(written) = socket::write(socket, context, &self.current) else {
            self.gather(context)?;
            return Poll::Pending;
        };
        let count = written.map_err(End::Tcp)?;
        self.current.advance(count);
        if self.current.is_empty() {
            // Also lets go of the memory.
            self.current = Bytes::new();
        }
        // Fails only for a stream that is gone, which reading will tell.
        let _gone = self.receive.flow_control().release_capacity(count);
        traffic.add_received(count);
        Poll::Ready(Ok(()))
    }

    /// Takes over what has come while the socket takes nothing: HTTP/2 counts small frames that nobody
    /// fetches, and ends the whole connection when there are too many. What may come is bounded by the
    /// stream's window.
    fn gather(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        while let Some(bytes) = self.receive(context)? {
            self.backlog.get_or_insert_default().push(bytes);
        }
        Ok(())
    }

    /// The next piece, if there is one now.
    fn receive(&mut self, context: &mut Context<'_>) -> Result<Option<Bytes>, End> {
        if self.received_end {
            return Ok(None);
        }
        match self.receive.poll_data(context) {
            Poll::Ready(Some(Ok(bytes))) => Ok(Some(bytes)),
            Poll::Ready(Some(Err(error))) => Err(End::of_tunnel(error)),
            Poll::Ready(None) => {
                self.received_end = true;
                Ok(None)
            }
            Poll::Pending => Ok(None),
        }
    }
}
