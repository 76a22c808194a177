//! Numbers of a socket and of its network namespace.

#![expect(unsafe_code, reason = "socket options that no crate has")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use ambit_abi::NetnsCookie;
use nix::sys::socket::{SockaddrIn, SockaddrIn6, SockaddrStorage, getsockname};

/// The cookie of the network namespace in which the socket was created.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
    read(socket, libc::SO_NETNS_COOKIE).map(NetnsCookie)
}

/// The socket's own cookie.
pub(crate) fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    read(socket, libc::SO_COOKIE)
}

/// The port that the socket is bound to.
pub(crate) fn port(socket: BorrowedFd<'_>) -> io::Result<u16> {
    let bound: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    let v4 = bound.as_sockaddr_in().map(SockaddrIn::port);
    let v6 = || bound.as_sockaddr_in6().map(SockaddrIn6::port);
    v4.or_else(v6).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn read(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, the size of the cookie.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
