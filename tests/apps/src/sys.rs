//! The system calls that have no safe wrapper.
#![expect(unsafe_code, reason = "thin wrappers around system calls")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::{IoUring, opcode, types};
use socket2::SockAddr;

mod ioctl {
    nix::ioctl_read_bad!(queued, libc::FIONREAD, libc::c_int);
    /// SIOCATMARK of linux/sockios.h.
    const AT_MARK: libc::c_ulong = 0x8905;
    nix::ioctl_read_bad!(at_mark, AT_MARK, libc::c_int);
}

/// How many bytes can be read at once (FIONREAD).
pub(crate) fn queued(socket: &impl AsRawFd) -> io::Result<i32> {
    let mut count = 0;
    // SAFETY: the kernel writes one int.
    unsafe { ioctl::queued(socket.as_raw_fd(), &raw mut count) }?;
    Ok(count)
}

/// Whether the next byte to read is the one after urgent data (SIOCATMARK).
pub(crate) fn at_mark(socket: &impl AsRawFd) -> io::Result<bool> {
    let mut mark = 0;
    // SAFETY: the kernel writes one int.
    unsafe { ioctl::at_mark(socket.as_raw_fd(), &raw mut mark) }?;
    Ok(mark != 0)
}

/// Dissolves a socket's association: `connect()` with AF_UNSPEC.
pub(crate) fn disconnect(socket: &impl AsRawFd) -> io::Result<()> {
    let address = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
    let size = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `size` bytes of `address`.
    let done = unsafe { libc::connect(socket.as_raw_fd(), &raw const address, size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Throws received bytes away without reading them: `recv()` with MSG_TRUNC and no buffer.
pub(crate) fn discard(socket: &impl AsRawFd, length: usize) -> io::Result<usize> {
    // SAFETY: with MSG_TRUNC a TCP socket writes nothing to the buffer, so it may be null.
    let taken = unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), length, libc::MSG_TRUNC) };
    usize::try_from(taken).map_err(|_| io::Error::last_os_error())
}

/// Sets an option of TCP that takes an int.
pub(crate) fn set_tcp_option(socket: &impl AsRawFd, option: i32, value: i32) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, option, value)
}

/// How many bytes make the socket readable (SO_RCVLOWAT).
pub(crate) fn set_low_water(socket: &impl AsRawFd, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

fn set_option(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads one int.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Connects through io_uring.
pub(crate) fn connect_io_uring(socket: &impl AsFd, to: SocketAddr) -> io::Result<()> {
    let to = SockAddr::from(to);
    let mut ring = IoUring::new(2)?;
    let fd = types::Fd(socket.as_fd().as_raw_fd());
    let entry = opcode::Connect::new(fd, to.as_ptr().cast(), to.len()).build();
    // SAFETY: the address and the socket outlive the operation: its completion is awaited below.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let done = ring.completion().next().ok_or_else(|| io::Error::other("no completion"))?.result();
    if done < 0 { Err(io::Error::from_raw_os_error(-done)) } else { Ok(()) }
}

/// `poll()` of one socket: its events, none when the time ran out. A timeout of -1 waits without limit.
pub(crate) fn poll(socket: &impl AsRawFd, events: i16, timeout: i32) -> io::Result<i16> {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    // SAFETY: the kernel reads and writes one entry.
    let count = unsafe { libc::poll(&raw mut entry, 1, timeout) };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(entry.revents) }
}
