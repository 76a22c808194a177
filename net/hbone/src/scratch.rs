//! Memory to read into, one buffer per thread, and the read itself: [`poll_read`] from a socket,
//! [`poll_read_stream`] from any stream, then [`give_back`]. Sockets that may carry urgent data are told to
//! [`report_unread`].
//!
//! A waiting connection holds no buffer. One is taken when there is data to read; the unused rest is
//! returned.
#![expect(
    unsafe_code,
    reason = "reads into memory that nothing has written yet, and an option that no crate has"
)]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, BytesMut};
use socket2::{MaybeUninitSlice, MsgHdrMut, SockRef};
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::TcpStream;

/// How much is read at a time: with the head of its frame it fills eight TLS records to the last byte.
pub(crate) const CHUNK: usize = (128 << 10) - FRAME_HEAD;
/// The head of an HTTP/2 frame.
const FRAME_HEAD: usize = 9;
/// How much is read ahead of TLS: such a frame, encrypted, and some more.
pub(crate) const AHEAD: usize = 144 << 10;

thread_local! {
    static SCRATCH: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// The thread's memory, or new one: empty, with room for [`AHEAD`].
pub(crate) fn take() -> BytesMut {
    let scratch = SCRATCH.take();
    // Not `reserve`, which may copy, or keep memory alive that others still hold.
    if scratch.capacity() < AHEAD { BytesMut::with_capacity(AHEAD) } else { scratch }
}

/// Gives memory back for the next read on this thread.
pub(crate) fn give_back(mut scratch: BytesMut) {
    scratch.clear();
    SCRATCH.set(scratch);
}

/// Reads at most `most` bytes, and no more than [`AHEAD`], into memory that [`take`] gave; none are the end.
pub(crate) fn poll_read(
    socket: &TcpStream,
    context: &mut Context<'_>,
    most: usize,
) -> Poll<io::Result<BytesMut>> {
    loop {
        ready!(socket.poll_read_ready(context))?;
        let mut scratch = take();
        match try_read(socket, &mut scratch, AHEAD.min(most)) {
            Ok(()) => return Poll::Ready(Ok(scratch)),
            Err(error) => {
                give_back(scratch);
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

/// The same from any stream.
pub(crate) fn poll_read_stream(
    stream: &mut (impl AsyncRead + Unpin),
    context: &mut Context<'_>,
    most: usize,
) -> Poll<io::Result<BytesMut>> {
    let mut scratch = take();
    let start = scratch.spare_capacity_mut().as_ptr();
    let mut buffer = ReadBuf::uninit(&mut scratch.spare_capacity_mut()[..AHEAD.min(most)]);
    let read = Pin::new(stream).poll_read(context, &mut buffer);
    let count = buffer.filled().len();
    assert_eq!(buffer.filled().as_ptr().cast(), start, "a stream reads into the buffer that it is given");
    match read {
        Poll::Ready(Ok(())) => {
            // SAFETY: the buffer vouches that its first `count` bytes were written, and they are the start of
            // the spare capacity.
            unsafe { scratch.advance_mut(count) };
            Poll::Ready(Ok(scratch))
        }
        Poll::Ready(Err(error)) => {
            give_back(scratch);
            Poll::Ready(Err(error))
        }
        Poll::Pending => {
            give_back(scratch);
            Poll::Pending
        }
    }
}

/// Has the kernel tell with each read how much is left. Without it, what follows an urgent mark would wait
/// for more to arrive.
pub(crate) fn report_unread(socket: &TcpStream) {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
    // Fails on kernels before 4.18 only.
    // SAFETY: the value lives until the call returns.
    let _old =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_TCP, TCP_INQ, (&raw const on).cast(), size) };
}

/// The option, and the kind of the message. libc has it for Android only.
const TCP_INQ: libc::c_int = 36;

/// Room for one control message with a number: its header of 16 bytes, and 8.
#[repr(align(8))]
struct Control([MaybeUninit<u8>; 24]);

/// Receives, and tells whether there is more to read that did not fit or that follows an urgent mark.
fn receive(socket: &TcpStream, memory: &mut [MaybeUninit<u8>]) -> io::Result<(usize, bool)> {
    let mut control = Control([MaybeUninit::uninit(); 24]);
    let mut pieces = [MaybeUninitSlice::new(memory)];
    let mut message = MsgHdrMut::new().with_buffers(&mut pieces).with_control(&mut control.0);
    let count = SockRef::from(socket).recvmsg(&mut message, 0)?;
    let told = message.control_len();
    // SAFETY: the kernel has written so many bytes.
    let told = unsafe { std::slice::from_raw_parts(control.0.as_ptr().cast::<u8>(), told.min(24)) };
    let number = |at: usize| {
        told.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, libc::c_int::from_ne_bytes)
    };
    // `struct cmsghdr`: length, level, type; then the value.
    let unread = number(8) == libc::SOL_TCP && number(12) == TCP_INQ && number(16) > 0;
    Ok((count, unread))
}

fn try_read(socket: &TcpStream, scratch: &mut BytesMut, most: usize) -> io::Result<()> {
    let mut count = 0;
    let result = socket.try_io(Interest::READABLE, || {
        let unread;
        (count, unread) = receive(socket, &mut scratch.spare_capacity_mut()[..most])?;
        // A read that came back short has emptied the socket: asking again would only say so. What arrives
        // from now on makes it readable again. But it also ends before a byte of urgent data.
        if count > 0 && count < most && !unread { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    if count == 0 {
        return result;
    }
    // SAFETY: the kernel has written `count` bytes at the start of the spare capacity.
    unsafe { scratch.advance_mut(count) };
    Ok(())
}
