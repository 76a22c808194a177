//! The application's side: a socket that is reset unless it was closed ([`ResetOnDrop`]).

use std::future::{Future, pending};
use std::io;
use std::net::Shutdown;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::read::read;
use super::side::Side;
use crate::memory;
use crate::scratch::{self, CHUNK};

/// A connection that was not carried to its end must not look as if it had been: dropping it sends a reset.
#[derive(Debug)]
pub(super) struct ResetOnDrop {
    socket: TcpStream,
    closed: bool,
}

impl ResetOnDrop {
    pub(super) fn new(socket: TcpStream) -> Self {
        // What is relayed was written by the application when it wanted; it must not wait here again. Fails
        // only for a connection that is gone, which reading will report.
        let _gone = socket.set_nodelay(true);
        scratch::report_unread(&socket);
        Self { socket, closed: false }
    }

    /// Both directions have ended: nothing is left to reset.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }
}

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if !self.closed {
            // Fails only for a connection that is gone.
            let _gone = self.socket.set_zero_linger();
        }
    }
}

impl Deref for ResetOnDrop {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.socket
    }
}

/// Writes what the socket takes.
pub(super) fn write(socket: &TcpStream, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_write_ready(context))?;
        match socket.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}

/// Ends our direction: the application reads the end when it has read everything.
pub(super) fn end(socket: &TcpStream) -> io::Result<()> {
    SockRef::from(socket).shutdown(Shutdown::Write)
}

/// Resolves when the connection was reset or failed, even while nothing is read or written.
pub(super) async fn failure(socket: &TcpStream) -> io::Error {
    if let Err(error) = socket.ready(Interest::ERROR).await {
        return error;
    }
    match socket.take_error() {
        Ok(Some(error)) | Err(error) => error,
        // Reading or writing has got the error and reports it.
        Ok(None) => pending().await,
    }
}

/// A socket as a side of a relay, with the future of its [`failure`].
pub(super) struct SocketSide<'a, F> {
    socket: &'a TcpStream,
    failure: Pin<&'a mut F>,
}

impl<'a, F: Future<Output = io::Error>> SocketSide<'a, F> {
    pub(super) fn new(socket: &'a TcpStream, failure: Pin<&'a mut F>) -> Self {
        Self { socket, failure }
    }
}

impl<F: Future<Output = io::Error>> Side for SocketSide<'_, F> {
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        read(self.socket, context, memory::piece(CHUNK))
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        let count = ready!(write(self.socket, context, bytes))?;
        bytes.advance(count);
        Poll::Ready(Ok(count))
    }

    fn poll_end(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(end(self.socket))
    }

    fn poll_failure(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        self.failure.as_mut().poll(context)
    }
}
