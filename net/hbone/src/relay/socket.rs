//! The application's side: a socket that is reset unless it was closed ([`ResetOnDrop`]).

use std::future::pending;
use std::io;
use std::net::Shutdown;
use std::ops::Deref;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// A connection that was not carried to its end must not look as if it had been: dropping it sends a reset.
#[derive(Debug)]
pub(super) struct ResetOnDrop {
    socket: TcpStream,
    closed: bool,
}

impl ResetOnDrop {
    pub(super) fn new(socket: TcpStream) -> Self {
        // What is relayed was written by the application when it wanted; it must not wait here again. Fails
        // only for a connection that is gone, which reading will tell.
        let _gone = socket.set_nodelay(true);
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

/// Resolves when the connection was reset or failed, even while nobody reads or writes.
pub(super) async fn failure(socket: &TcpStream) -> io::Error {
    if let Err(error) = socket.ready(Interest::ERROR).await {
        return error;
    }
    match socket.take_error() {
        Ok(Some(error)) | Err(error) => error,
        // Reading or writing has got the error and tells it.
        Ok(None) => pending().await,
    }
}
