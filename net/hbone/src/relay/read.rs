//! Reads for a relay: [`read`] from a socket, [`stream`] from any stream.
//!
//! Small reads are copied into a buffer of their size. A large read keeps the thread's buffer, which is then
//! replaced.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncRead;
use tokio::net::TcpStream;

use crate::scratch::{self, CHUNK};

/// Below this, copying is cheaper than taking new memory.
const COPY_BELOW: usize = 32 << 10;

/// Reads at most `most` bytes, and no more than [`CHUNK`]; none are the end.
pub(super) fn read(socket: &TcpStream, context: &mut Context<'_>, most: usize) -> Poll<io::Result<Bytes>> {
    let scratch = ready!(scratch::poll_read(socket, context, CHUNK.min(most)))?;
    Poll::Ready(Ok(taken(scratch)))
}

/// Reads at most [`CHUNK`]; nothing is the end.
pub(super) fn stream(
    stream: &mut (impl AsyncRead + Unpin),
    context: &mut Context<'_>,
) -> Poll<io::Result<Bytes>> {
    let scratch = ready!(scratch::poll_read_stream(stream, context, CHUNK))?;
    Poll::Ready(Ok(taken(scratch)))
}

fn taken(mut scratch: BytesMut) -> Bytes {
    let bytes =
        if scratch.len() < COPY_BELOW { Bytes::copy_from_slice(&scratch) } else { scratch.split().freeze() };
    scratch::give_back(scratch);
    bytes
}
