//! System calls that no crate wraps.

#![expect(unsafe_code, reason = "system calls that no crate wraps")]

use std::io;
use std::os::fd::AsRawFd;

use socket2::{SockAddr, Socket};

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `connect()` with `AF_UNSPEC`, which disconnects the socket.
pub(crate) fn disconnect(socket: &Socket) -> io::Result<()> {
    let nowhere = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
    let length = libc::socklen_t::try_from(size_of_val(&nowhere)).expect("a small size");
    // SAFETY: the address lives until the call returns.
    checked(unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) })
}

/// Sets a TCP option.
pub(crate) fn set_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).expect("a small size");
    // SAFETY: the value lives until the call returns.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const value).cast(), length)
    };
    checked(result)
}

/// `sendto()` with `MSG_FASTOPEN`: connects, with data in the SYN.
pub(crate) fn send_fast_open(socket: &Socket, data: &[u8], to: &SockAddr) -> io::Result<usize> {
    socket.send_to_with_flags(data, to, libc::MSG_FASTOPEN)
}
