//! Sockets with the options the proxy needs: [`listen`], [`connecting`], and closing by [`reset`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// The kernel caps it at the namespace's own limit (`net.core.somaxconn`, 4096).
const BACKLOG: i32 = 4096;
/// A peer that vanished is noticed after 3 minutes of silence; Istio's ztunnel uses the same times.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_mins(1);
const KEEPALIVE_PROBES: u32 = 3;

/// The address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: SocketAddr) -> Self {
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

/// Where the peer of a socket is, which decides about congestion control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerLocation {
    /// An application on this node.
    Local,
    /// Possibly another node.
    Remote,
}

/// Congestion control of connections that never leave the node. The host's default may pace its segments
/// (BBR does), which costs a timer for every few segments and a third of a tunnel's throughput, and a
/// connection within one node has no network to spare (`docs/decisions/095`). Every kernel has `reno`.
const LOCAL_CONGESTION_CONTROL: &[u8] = b"reno";

/// A listening socket on loopback and a free port, in the thread's current network namespace.
pub fn listen(family: Family, peer: PeerLocation) -> io::Result<Socket> {
    let address = family.loopback();
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit all of this, which saves six system calls for each of them.
    // A tunnel cannot carry urgent data out of band; inline, no byte is lost.
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_nodelay(true)?;
    keepalive(&SockRef::from(&socket))?;
    congestion_control(&SockRef::from(&socket), peer)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A socket to connect with, in the thread's current network namespace.
pub fn connecting(family: Family, peer: PeerLocation) -> io::Result<TcpSocket> {
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

fn congestion_control(socket: &SockRef<'_>, peer: PeerLocation) -> io::Result<()> {
    match peer {
        PeerLocation::Local => socket.set_tcp_congestion(LOCAL_CONGESTION_CONTROL),
        PeerLocation::Remote => Ok(()),
    }
}

fn keepalive(socket: &SockRef<'_>) -> io::Result<()> {
    let times = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&times)
}

/// Closes with RST, so that the peer sees an error and not an orderly end.
pub fn reset(stream: TcpStream) {
    // Fails only on a socket without a connection, which needs no reset.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

#[cfg(test)]
mod tests;
