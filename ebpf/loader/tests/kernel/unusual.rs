//! Unusual ways to connect, all of which pass the connect hook.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::{
    DEADLINE, Lab, MESH_V4, MESH_V6, NODE_V4, POD_V4, POD_V6, Pod, accept, address, assert_connected, at,
    local, peer, until,
};
use crate::system::{disconnect, send_fast_open, set_option};

/// Starts a connection, with data if this way of connecting sends data.
type Connect = fn(&Socket, &SockAddr) -> io::Result<()>;

fn non_blocking(socket: &Socket, to: &SockAddr) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(to) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        result => result?,
    }
    let timeout = PollTimeout::try_from(DEADLINE).map_err(io::Error::other)?;
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    assert_eq!(poll(&mut ready, timeout)?, 1, "the socket becomes writable");
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.set_nonblocking(false)
}

fn fast_open_send(socket: &Socket, to: &SockAddr) -> io::Result<()> {
    send_fast_open(socket, b"fast", to).map(drop)
}

fn fast_open_connect(mut socket: &Socket, to: &SockAddr) -> io::Result<()> {
    set_option(socket, libc::TCP_FASTOPEN_CONNECT, 1)?;
    socket.connect(to)?;
    socket.write_all(b"fast")
}

fn limited(socket: &Socket, to: &SockAddr) -> io::Result<()> {
    socket.connect_timeout(to, Duration::from_secs(5))
}

fn bound(socket: &Socket, to: &SockAddr) -> io::Result<()> {
    let ip = to.as_socket().expect("an IP address").ip();
    let mapped = format!("::ffff:{POD_V4}");
    let own = match (ip, ip.to_canonical()) {
        (IpAddr::V4(_), _) => POD_V4,
        (_, IpAddr::V4(_)) => &mapped,
        _ => POD_V6,
    };
    socket.bind(&at(own, 0).into())?;
    socket.connect(to)
}

#[test]
fn unusual_connects_are_captured() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    let rows: [(&str, Connect, &[u8]); 5] = [
        ("non-blocking", non_blocking, b""),
        ("with a time limit", limited, b""),
        ("bound to the pod's address", bound, b""),
        ("fast open by sendto", fast_open_send, b"fast"),
        ("fast open by connect", fast_open_connect, b"fast"),
    ];
    for (name, connect, early) in rows {
        for destination in [at(MESH_V4, 8080), at(MESH_V6, 8080), at(&format!("::ffff:{MESH_V4}"), 8080)] {
            let socket = pod.socket(Domain::for_address(destination));
            connect(&socket, &destination.into())
                .unwrap_or_else(|error| panic!("{name}, {destination}: {error}"));
            let (mut server, found) = daemon.captured(&dataplane, destination);
            let canonical = SocketAddr::new(destination.ip().to_canonical(), destination.port());
            assert_eq!(found, Some(canonical), "{name}, {destination}");
            assert_eq!(peer(&socket), destination, "{name}");
            let mut data = vec![0; early.len()];
            io::Read::read_exact(&mut server, &mut data).expect("the data sent with the connect");
            assert_eq!(data, early, "{name}, {destination}");
            assert_connected(name, &socket, &server);
        }
    }
    until("no hand-off remains", || dataplane.pending_handoffs().expect("hand-offs") == 0);
}

#[test]
fn multipath_clients_are_captured() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    let mapped = format!("::ffff:{MESH_V4}");
    for destination in [at(MESH_V4, 8080), at(MESH_V6, 8080), at(&mapped, 8080)] {
        let socket = pod.run(|| {
            Socket::new(Domain::for_address(destination), Type::STREAM, Some(Protocol::MPTCP))
                .expect("a multipath socket (kernel with MPTCP)")
        });
        socket.connect(&destination.into()).expect("connected");
        let (server, found) = daemon.captured(&dataplane, destination);
        let canonical = SocketAddr::new(destination.ip().to_canonical(), destination.port());
        assert_eq!(found, Some(canonical), "captured by the first subflow");
        assert_eq!(peer(&socket), destination, "the app sees its destination");
        assert_connected("multipath", &socket, &server);
    }
}

#[test]
fn reconnected_multipath_sockets_have_no_earlier_state() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    let socket =
        pod.run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).expect("a socket"));
    socket.connect(&at(MESH_V4, 8080).into()).expect("captured");
    drop(daemon.captured(&dataplane, at(MESH_V4, 8080)));
    disconnect(&socket).expect("disconnecting");
    let listener = pod.outside.listen(NODE_V4);
    socket.connect(&local(&listener).into()).expect("not captured");
    assert_eq!(accept(&listener).1.ip(), address(POD_V4));
    assert_eq!(peer(&socket), local(&listener), "no state of the captured connection");
}
