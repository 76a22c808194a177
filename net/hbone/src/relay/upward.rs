//! From the application's socket into the tunnel ([`Upward`]).
//!
//! Send capacity is reserved only when there is data to read; unused capacity is released: the connection's
//! window is shared by all of its tunnels.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use tokio::net::TcpStream;

use super::outcome::End;
use super::read::read;
use super::traffic::Traffic;
use crate::scratch::CHUNK;
use crate::tunnel::poll_flushed;

/// With less send capacity than this, wait. A peer whose window was once twice as large grants at least as
/// much again when it has read what we sent.
const LITTLE: usize = 16 << 10;

pub(super) struct Upward {
    send: SendStream<Bytes>,
    /// Capacity is reserved and not used.
    reserved: bool,
    /// How much may wait to be written to the peer.
    send_buffer: usize,
    ended: bool,
    /// Capacity has once been at least twice the threshold.
    wide: bool,
    /// The socket has failed, and its error has been taken: reading will say that this is the end, and it is
    /// not.
    failed: bool,
}

impl Upward {
    /// `ended`: the direction has ended before the relay begins.
    pub(super) fn new(send: SendStream<Bytes>, send_buffer: usize, ended: bool) -> Self {
        Self { send, reserved: false, send_buffer, ended, wide: false, failed: false }
    }

    /// Carries what can be carried; ready when the application has ended its direction.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        socket: &TcpStream,
        traffic: &Traffic,
    ) -> Poll<Result<(), End>> {
        match self.send.poll_reset(context) {
            Poll::Ready(Ok(reason)) => return Poll::Ready(Err(End::TunnelReset(reason))),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(End::of_tunnel(error))),
            Poll::Pending => {}
        }
        while !self.ended {
            ready!(self.carry(context, socket, traffic))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Carries one piece.
    fn carry(
        &mut self,
        context: &mut Context<'_>,
        socket: &TcpStream,
        traffic: &Traffic,
    ) -> Poll<Result<(), End>> {
        if socket.poll_read_ready(context).map_err(End::First)?.is_pending() {
            self.give_back();
            return Poll::Pending;
        }
        let Some(room) = ready!(self.poll_room(context)?) else {
            // The stream was reset; `poll_reset` knows why, or will.
            return Poll::Pending;
        };
        let Poll::Ready(bytes) = read(socket, context, room).map_err(End::First)? else {
            self.give_back();
            return Poll::Pending;
        };
        let count = bytes.len();
        if count == 0 && self.failed {
            return Poll::Pending;
        }
        if count == 0 {
            self.give_back();
            self.ended = true;
        }
        self.send.send_data(bytes, self.ended).map_err(End::of_tunnel)?;
        traffic.add_sent(count);
        Poll::Ready(Ok(()))
    }

    /// How many bytes the tunnel takes now; `None` when it takes no more.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<usize>, End>> {
        if self.send.capacity() < CHUNK {
            self.reserved = true;
            self.send.reserve_capacity(CHUNK);
        }
        loop {
            let room = self.send.capacity();
            // Where there is much room at times, a little of it is not worth a read: more is about to come.
            self.wide |= room >= 2 * LITTLE;
            if room > 0 && (room >= LITTLE || !self.wide) {
                return Poll::Ready(Ok(Some(room)));
            }
            // Says only what has changed since it was asked last, and that may be nothing by now.
            match ready!(self.send.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(End::of_tunnel(error))),
                None => return Poll::Ready(Ok(None)),
            }
        }
    }

    fn give_back(&mut self) {
        if std::mem::take(&mut self.reserved) {
            self.send.reserve_capacity(0);
        }
    }

    /// The socket has failed: what it still holds may be carried, but its EOF is not an orderly end.
    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    /// Resolves when everything that was sent is on its way.
    pub(super) fn poll_flushed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        poll_flushed(&mut self.send, self.send_buffer, context)
    }

    /// Resets the tunnel, as the application's connection was.
    pub(super) fn reset(&mut self) {
        self.send.send_reset(Reason::CANCEL);
    }
}
