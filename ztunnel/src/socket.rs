//! Sockets as the daemon wants them: listeners, connecting sockets, and ends by reset.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// The kernel caps it at the namespace's own limit (`net.core.somaxconn`, 4096).
const BACKLOG: i32 = 4096;
/// A peer that is gone without a word is noticed after 3 minutes: Istio's ztunnel has the same times.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_mins(1);
const KEEPALIVE_PROBES: u32 = 3;

/// The address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn loopback(self) -> SocketAddr {
        let address: IpAddr = match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        SocketAddr::new(address, 0)
    }
}

/// Who is at the other end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The application of a pod of this node.
    Local,
    /// Perhaps somebody elsewhere.
    Remote,
}

/// Congestion control of what never leaves the node. The host's choice may pace (BBR does), which costs a
/// timer for every few segments and a third of a tunnel's throughput where there is no network to be gentle
/// to (decision 095). Every kernel has this one.
const LOCAL_CONGESTION_CONTROL: &[u8] = b"reno";

/// A listening socket on loopback and a free port, in the thread's present namespace.
pub(crate) fn listen(family: Family, peer: Peer) -> io::Result<Socket> {
    let address = family.loopback();
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit all of this, which saves six system calls for each of them.
    // Urgent data cannot travel through a tunnel as such; in its place in the stream no byte is lost.
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_nodelay(true)?;
    keepalive(&SockRef::from(&socket))?;
    congestion_control(&SockRef::from(&socket), peer)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A socket to connect with, in the thread's present namespace.
pub(crate) fn connecting(family: Family, peer: Peer) -> io::Result<TcpSocket> {
    let socket = match family {
        Family::V4 => TcpSocket::new_v4()?,
        Family::V6 => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_out_of_band_inline(true)?;
    keepalive(&SockRef::from(&socket))?;
    congestion_control(&SockRef::from(&socket), peer)?;
    Ok(socket)
}

fn congestion_control(socket: &SockRef<'_>, peer: Peer) -> io::Result<()> {
    match peer {
        Peer::Local => socket.set_tcp_congestion(LOCAL_CONGESTION_CONTROL),
        Peer::Remote => Ok(()),
    }
}

fn keepalive(socket: &SockRef<'_>) -> io::Result<()> {
    let times = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&times)
}

/// Closes with RST, so that the other end sees an error and not an orderly end.
pub(crate) fn reset(stream: TcpStream) {
    // Fails only on a socket that has no connection any more, which needs no reset.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_sockets_inherit_what_the_listener_has() {
        for family in [Family::V4, Family::V6] {
            let listener = listen(family, Peer::Local).unwrap();
            listener.set_nonblocking(false).unwrap();
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            let _client = std::net::TcpStream::connect(address).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert!(accepted.tcp_nodelay().unwrap(), "{family:?}");
            assert!(accepted.out_of_band_inline().unwrap(), "{family:?}");
            assert!(accepted.keepalive().unwrap(), "{family:?}");
            assert!(accepted.tcp_congestion().unwrap().starts_with(LOCAL_CONGESTION_CONTROL), "{family:?}");
            assert_eq!(accepted.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE, "{family:?}");
            assert_eq!(accepted.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL, "{family:?}");
            assert_eq!(accepted.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES, "{family:?}");
        }
    }
}
