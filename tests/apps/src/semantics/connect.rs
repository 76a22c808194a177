//! Ways to connect, and the addresses that both ends see.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use super::part::{Row, accept, connect, done, drain, errno, listen, listen_with, result, wait};
use crate::sys;

pub(super) const ROWS: &[Row] = &[
    Row { name: "connect_blocking", listen, server: serve, client: |to| talk(connect(to)?, to) },
    Row { name: "getsockname", listen, server: serve, client: own_address },
    Row { name: "connect_from_a_chosen_port", listen, server: serve, client: chosen_port },
    Row { name: "connect_v4_mapped", listen, server: serve, client: mapped },
    Row {
        name: "connect_to_a_dual_stack_listener",
        listen: dual_stack,
        server: serve,
        client: |to| talk(connect(to)?, to),
    },
    Row { name: "connect_non_blocking", listen, server: serve, client: non_blocking },
    Row { name: "connect_io_uring", listen, server: serve, client: uring },
    Row { name: "connect_fast_open", listen: fast_open_listener, server: serve_twice, client: fast_open },
    Row {
        name: "connect_fast_open_option",
        listen: fast_open_listener,
        server: serve,
        client: fast_open_option,
    },
    Row { name: "connect_mptcp", listen: mptcp_listener, server: serve, client: mptcp },
    Row { name: "connect_mptcp_to_plain", listen, server: serve, client: mptcp },
    Row {
        name: "connect_plain_to_mptcp",
        listen: mptcp_listener,
        server: serve,
        client: |to| talk(connect(to)?, to),
    },
    Row { name: "connect_again_after_disconnect", listen, server: serve_twice, client: reconnect },
    Row { name: "connect_twice", listen, server: serve, client: twice },
    Row {
        name: "connect_refused",
        listen: unused_port,
        server: |_| Ok(json!({})),
        client: |to| Ok(refused(to)),
    },
    Row { name: "server_speaks_first", listen, server: speak, client: hear },
];

/// Reports the accepted peer's address and both addresses of the socket; echoes what came.
fn serve(listener: &Socket) -> Result<Value> {
    let (socket, from) = listener.accept().context("accept")?;
    let mut stream = TcpStream::from(socket);
    let from = from.as_socket().context("an address of another family")?;
    // The client begins with its own port.
    let mut said = String::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        said.push(char::from(byte[0]));
    }
    let claimed: u16 = said.parse().with_context(|| format!("the client said {said:?}"))?;
    stream.write_all(format!("{said} it is\n").as_bytes())?;
    let rest = drain(&mut stream);
    Ok(json!({
        "accept": from.ip().to_string(),
        "accepted_port_is_clients": from.port() == claimed,
        "getpeername_is_accepted": stream.peer_addr()? == from,
        "getsockname": stream.local_addr()?.to_string(),
        "rest": rest,
    }))
}

fn serve_twice(listener: &Socket) -> Result<Value> {
    Ok(json!([serve(listener)?, serve(listener)?]))
}

/// The client's part: sends its port, reads the echo, half-closes, reads to the end.
fn talk(mut stream: TcpStream, to: SocketAddr) -> Result<Value> {
    let port = stream.local_addr().context("getsockname")?.port();
    stream.write_all(format!("{port}\n").as_bytes()).context("failed to send")?;
    hear_echo(stream, to, port)
}

fn hear_echo(mut stream: TcpStream, to: SocketAddr, port: u16) -> Result<Value> {
    let expected = format!("{port} it is\n");
    let mut echo = vec![0; expected.len()];
    stream.read_exact(&mut echo).context("failed to read the echo")?;
    let peer = stream.peer_addr().context("getpeername")?;
    stream.shutdown(Shutdown::Write)?;
    let rest = drain(&mut stream);
    Ok(json!({
        "echo": echo == expected.as_bytes(),
        "getpeername_is_asked": peer == to,
        "getpeername": peer.to_string(),
        "rest": rest,
    }))
}

fn fresh(to: SocketAddr, protocol: Protocol) -> Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol)).context("socket")
}

fn own_address(to: SocketAddr) -> Result<Value> {
    let stream = connect(to)?;
    let own = stream.local_addr().context("getsockname")?.ip();
    let own = if own.to_canonical().is_loopback() { "loopback" } else { "its own address" };
    Ok(json!({"getsockname": own, "talk": talk(stream, to)?}))
}

/// The unspecified address of the same family.
fn any(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn chosen_port(to: SocketAddr) -> Result<Value> {
    let socket = fresh(to, Protocol::TCP)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(any(to), 31_007).into()).context("bind")?;
    socket.connect(&to.into()).context("connect")?;
    let stream = TcpStream::from(socket);
    let kept = stream.local_addr()?.port() == 31_007;
    Ok(json!({"port_kept": kept, "talk": talk(stream, to)?}))
}

/// An IPv6 socket to an IPv4 address, as Java, Node and Go do. On IPv6 there is nothing to map.
fn mapped(to: SocketAddr) -> Result<Value> {
    let to = match to.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
        IpAddr::V6(_) => to,
    };
    talk(connect(to)?, to)
}

fn dual_stack(address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    let all = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
    socket.bind(&all.into())?;
    socket.listen(16)?;
    Ok(socket)
}

fn non_blocking(to: SocketAddr) -> Result<Value> {
    let socket = fresh(to, Protocol::TCP)?;
    socket.set_nonblocking(true)?;
    let first = socket.connect(&to.into());
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::NONE)?;
    let events = fds[0].revents().map(|events| format!("{events:?}"));
    let error = socket.take_error()?.map(|error| errno(&error));
    let again = socket.connect(&to.into());
    socket.set_nonblocking(false)?;
    Ok(json!({
        "connect": done(first), "poll": events, "so_error": error, "connect_again": done(again),
        "talk": talk(socket.into(), to)?,
    }))
}

fn uring(to: SocketAddr) -> Result<Value> {
    let socket = fresh(to, Protocol::TCP)?;
    sys::connect_io_uring(&socket, to).context("io_uring connect")?;
    talk(socket.into(), to)
}

fn fast_open_listener(address: SocketAddr) -> Result<Socket> {
    let socket = listen(address)?;
    sys::set_tcp_option(&socket, libc::TCP_FASTOPEN, 16)?;
    Ok(socket)
}

/// Twice: the second time the client may hold a cookie and the data may travel with the SYN.
fn fast_open(to: SocketAddr) -> Result<Value> {
    let mut talks = Vec::new();
    for _ in 0..2 {
        let socket = fresh(to, Protocol::TCP)?;
        // Its own port is needed in the first bytes, before there is a connection: bind first.
        socket.bind(&SocketAddr::new(any(to), 0).into())?;
        let port = socket.local_addr()?.as_socket().context("an address of another family")?.port();
        let first = format!("{port}\n");
        // Connects and sends in one call.
        let sent = socket.send_to_with_flags(first.as_bytes(), &to.into(), libc::MSG_FASTOPEN);
        let whole = sent.as_ref().is_ok_and(|sent| *sent == first.len());
        if !whole {
            bail!("sendto with MSG_FASTOPEN: {}", result(sent));
        }
        talks.push(hear_echo(socket.into(), to, port)?);
    }
    Ok(talks.into())
}

fn fast_open_option(to: SocketAddr) -> Result<Value> {
    let socket = fresh(to, Protocol::TCP)?;
    sys::set_tcp_option(&socket, libc::TCP_FASTOPEN_CONNECT, 1)?;
    socket.connect(&to.into()).context("connect")?;
    talk(socket.into(), to)
}

fn mptcp_listener(address: SocketAddr) -> Result<Socket> {
    listen_with(address, Some(Protocol::MPTCP))
}

fn mptcp(to: SocketAddr) -> Result<Value> {
    let socket = fresh(to, Protocol::MPTCP)?;
    socket.connect(&to.into()).context("connect")?;
    talk(socket.into(), to)
}

/// One socket, two connections after each other: no state of the first may remain in the second.
fn reconnect(to: SocketAddr) -> Result<Value> {
    let socket = fresh(to, Protocol::TCP)?;
    socket.connect(&to.into()).context("connect")?;
    let first = talk(socket.try_clone()?.into(), to)?;
    let disconnect = sys::disconnect(&socket);
    socket.connect(&to.into()).context("connect again")?;
    Ok(json!({"first": first, "disconnect": done(disconnect), "second": talk(socket.into(), to)?}))
}

fn twice(to: SocketAddr) -> Result<Value> {
    let socket = fresh(to, Protocol::TCP)?;
    socket.connect(&to.into()).context("connect")?;
    let again = socket.connect(&to.into());
    Ok(json!({"again": done(again), "talk": talk(socket.into(), to)?}))
}

/// A bound socket that does not listen: the port is refused.
fn unused_port(address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn refused(to: SocketAddr) -> Value {
    match TcpStream::connect(to) {
        // Through a proxy the reset may be so quick that it meets `connect()` itself.
        Err(error) => json!({"refused": errno(&error)}),
        Ok(mut stream) => json!({"refused": drain(&mut stream)["end"]}),
    }
}

fn speak(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    stream.write_all(b"220 at your service\r\n")?;
    wait(&mut stream)?;
    Ok(drain(&mut stream))
}

fn hear(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    let mut banner = [0; 21];
    stream.read_exact(&mut banner).context("failed to read the banner")?;
    super::part::go(&mut stream)?;
    Ok(json!({"banner": String::from_utf8_lossy(&banner)}))
}
