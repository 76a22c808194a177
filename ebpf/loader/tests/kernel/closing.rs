//! Records of closed connections: byte counts are exactly those of the apps, for every order of closing.

#![expect(unsafe_code, reason = "a system call that no crate wraps")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use ambit_loader::{Inbound, InboundMode, KernelReason, Path, Record, RecordKind};
use socket2::Socket;

use crate::lab::{accept, address, at, local, until};
use crate::neighbours::{CLIENT, NODE, Neighbours, OTHER, SERVER, V4, V6};

const MIB: usize = 1 << 20;

/// Sends bytes in a thread of its own while the peer reads them.
fn transfer(from: &Socket, to: &Socket, length: usize) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut from, data) = (from, vec![7; length]);
            from.write_all(&data).expect("writing");
        });
        let (mut to, mut data) = (to, vec![0; length]);
        to.read_exact(&mut data).expect("reading");
    });
}

fn both_ways(client: &Socket, server: &Socket, length: usize) {
    transfer(client, server, length);
    transfer(server, client, length);
}

fn at_end(mut socket: &Socket) {
    assert_eq!(socket.read(&mut [0; 1]).expect("reading"), 0, "the peer has closed");
}

fn reset(socket: Socket) {
    socket.set_linger(Some(Duration::ZERO)).expect("reset on close");
    drop(socket);
}

/// Waits for the peer's reset. An end that closes before it arrives closes in order.
fn until_reset(socket: &Socket) {
    until("the reset has arrived", || socket.take_error().expect("the socket's error").is_some());
}

/// Waits until bytes are in the peer's receive queue.
fn until_arrived(socket: &Socket, length: usize) {
    until("the bytes have arrived", || {
        let mut room = vec![std::mem::MaybeUninit::uninit(); length + 1];
        socket.peek(&mut room).is_ok_and(|there| there >= length)
    });
}

/// A row: its name, what the ends do, the bytes of each, and the reason in the record; none where the reason
/// depends on whether the kernel acknowledged a FIN before the reset.
type Row = (&'static str, fn(Socket, Socket), (u64, u64), Option<KernelReason>);

const ROWS: [Row; 19] = [
    (
        "the client closes first",
        |client, server| {
            both_ways(&client, &server, 100);
            drop(client);
            at_end(&server);
        },
        (100, 100),
        Some(KernelReason::Closed),
    ),
    (
        "the server closes first",
        |client, server| {
            both_ways(&client, &server, 100);
            drop(server);
            at_end(&client);
        },
        (100, 100),
        Some(KernelReason::Closed),
    ),
    (
        "both at once",
        |client, server| {
            both_ways(&client, &server, 100);
            drop((client, server));
        },
        (100, 100),
        Some(KernelReason::Closed),
    ),
    (
        "no data, the client first",
        |client, server| {
            drop(client);
            at_end(&server);
        },
        (0, 0),
        Some(KernelReason::Closed),
    ),
    (
        "no data, the server first",
        |client, server| {
            drop(server);
            at_end(&client);
        },
        (0, 0),
        Some(KernelReason::Closed),
    ),
    (
        "only the client sends",
        |client, server| {
            transfer(&client, &server, 5);
            drop(client);
            at_end(&server);
        },
        (5, 0),
        Some(KernelReason::Closed),
    ),
    (
        "only the server sends",
        |client, server| {
            transfer(&server, &client, 5);
            drop(server);
            at_end(&client);
        },
        (0, 5),
        Some(KernelReason::Closed),
    ),
    (
        "1 MiB both ways, the client first",
        |client, server| {
            both_ways(&client, &server, MIB);
            drop(client);
            at_end(&server);
        },
        (MIB as u64, MIB as u64),
        Some(KernelReason::Closed),
    ),
    (
        "1 MiB both ways, the server first",
        |client, server| {
            both_ways(&client, &server, MIB);
            drop(server);
            at_end(&client);
        },
        (MIB as u64, MIB as u64),
        Some(KernelReason::Closed),
    ),
    (
        "the client half-closes, then the server sends more",
        |client, server| {
            transfer(&client, &server, 10);
            client.shutdown(Shutdown::Write).expect("shut down");
            at_end(&server);
            transfer(&server, &client, MIB);
            drop(server);
            at_end(&client);
        },
        (10, MIB as u64),
        Some(KernelReason::Closed),
    ),
    (
        "the server half-closes, then the client sends more",
        |client, server| {
            transfer(&server, &client, 10);
            server.shutdown(Shutdown::Write).expect("shut down");
            at_end(&client);
            transfer(&client, &server, MIB);
            drop(client);
            at_end(&server);
        },
        (MIB as u64, 10),
        Some(KernelReason::Closed),
    ),
    (
        "the server half-closes, the client's last bytes come with its FIN",
        |client, server| {
            server.shutdown(Shutdown::Write).expect("shut down");
            at_end(&client);
            client.set_tcp_nodelay(false).expect("gather");
            crate::system::set_option(&client, libc::TCP_CORK, 1).expect("corked");
            (&client).write_all(b"last").expect("writing");
            drop(client);
            let mut text = String::new();
            (&server).read_to_string(&mut text).expect("reading to the end");
            assert_eq!(text, "last");
        },
        (4, 0),
        Some(KernelReason::Closed),
    ),
    (
        "both half-close, then both close",
        |client, server| {
            both_ways(&client, &server, 3);
            client.shutdown(Shutdown::Write).expect("shut down");
            at_end(&server);
            server.shutdown(Shutdown::Write).expect("shut down");
            at_end(&client);
        },
        (3, 3),
        Some(KernelReason::Closed),
    ),
    (
        "the client resets",
        |client, server| {
            both_ways(&client, &server, 100);
            reset(client);
            until_reset(&server);
        },
        (100, 100),
        Some(KernelReason::Reset),
    ),
    (
        "the server resets",
        |client, server| {
            both_ways(&client, &server, 100);
            reset(server);
            drop(client);
        },
        (100, 100),
        Some(KernelReason::Reset),
    ),
    (
        "the server closes with data unread",
        |client, server| {
            (&client).write_all(&[1; 100]).expect("writing");
            until_arrived(&server, 100);
            drop(server);
            drop(client);
        },
        (100, 0),
        Some(KernelReason::Reset),
    ),
    (
        "the client closes with data unread",
        |client, server| {
            (&server).write_all(&[1; 100]).expect("writing");
            until_arrived(&client, 100);
            drop(client);
            until_reset(&server);
        },
        (0, 100),
        Some(KernelReason::Reset),
    ),
    (
        "the server has closed, the client closes with data unread",
        |client, server| {
            both_ways(&client, &server, 7);
            (&server).write_all(&[1; 100]).expect("writing");
            until_arrived(&client, 100);
            drop(server);
            drop(client);
        },
        (7, 107),
        None,
    ),
    (
        "reset after the client half-closed",
        |client, server| {
            both_ways(&client, &server, 100);
            client.shutdown(Shutdown::Write).expect("shut down");
            at_end(&server);
            reset(client);
            until_reset(&server);
        },
        (100, 100),
        Some(KernelReason::Reset),
    ),
];

fn assert_ended(name: &str, closed: &Record, sent: (u64, u64), reason: Option<KernelReason>) {
    assert_eq!((closed.from_client, closed.from_server), sent, "{name}");
    match reason {
        Some(_) => assert_eq!(closed.reason, reason, "{name}"),
        None => assert!(matches!(closed.reason, Some(KernelReason::Closed | KernelReason::Reset)), "{name}"),
    }
}

#[test]
fn direct_connections_have_exact_byte_counts() {
    let world = Neighbours::new();
    for (text, family) in [(V4[SERVER], "IPv4"), (V6[SERVER], "IPv6")] {
        let app = world.pods[SERVER].listen(text);
        world.allow(CLIENT, SERVER, local(&app));
        for (name, ends, sent, reason) in ROWS {
            let name = format!("{name}, {family}");
            let client = world.pods[CLIENT].connect(local(&app)).expect("direct");
            let (server, from) = accept(&app);
            ends(client, server);
            let closed = world.record(RecordKind::Closed, from);
            assert_eq!(closed.path, Path::Direct, "{name}");
            assert_ended(&name, &closed, sent, reason);
            world.until_no_flow_is_tracked();
        }
    }
}

#[test]
fn orphaned_server_socket_is_recorded_without_the_clients_fin() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen(V4[SERVER]);
    world.allow(CLIENT, SERVER, local(&app));
    let client = world.pods[CLIENT].connect(local(&app)).expect("direct");
    let (server, from) = accept(&app);
    both_ways(&client, &server, 100);
    drop(server);
    // The client's kernel acknowledges the FIN, and after a while the server's socket is gone.
    let closed = world.record(RecordKind::Closed, from);
    assert_ended("without the client's FIN", &closed, (100, 100), Some(KernelReason::Closed));
    world.until_no_flow_is_tracked();
    // The client's later bytes reach no app.
    (&client).write_all(b"late").expect("writing");
    until("the connection is reset", || {
        client.take_error().expect("its error").is_some() || (&client).write(b"x").is_err()
    });
    drop(client);
    assert!(
        world.remaining_records().iter().all(|record| record.kind == RecordKind::Opened),
        "one record of the end"
    );
}

#[test]
fn full_window_has_exact_byte_counts() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen(V4[SERVER]);
    world.allow(CLIENT, SERVER, local(&app));
    // The server's FIN waits behind data for which the client has no room, and then the client resets.
    for half in [false, true] {
        let client = world.pods[CLIENT].connect(local(&app)).expect("direct");
        let (server, from) = accept(&app);
        if half {
            client.shutdown(Shutdown::Write).expect("shut down");
            at_end(&server);
        }
        server.set_nonblocking(true).expect("non-blocking");
        let chunk = vec![1; 1 << 16];
        until("the client's window is full and all sent bytes are acknowledged", || {
            while (&server).write(&chunk).is_ok() {}
            unacknowledged(&server) == 0
        });
        drop(server);
        let there = waiting(&client);
        reset(client);
        let closed = world.record(RecordKind::Closed, from);
        assert_ended(if half { "half" } else { "whole" }, &closed, (0, there), Some(KernelReason::Reset));
        world.until_no_flow_is_tracked();
    }
}

/// The number of unacknowledged segments.
fn unacknowledged(socket: &Socket) -> u32 {
    // SAFETY: integers only, and the kernel writes at most `length` bytes.
    unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut length = libc::socklen_t::try_from(size_of_val(&info)).expect("a small size");
        let result = libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        );
        assert_eq!(result, 0, "TCP_INFO");
        info.tcpi_unacked
    }
}

/// The number of bytes in the receive queue.
fn waiting(socket: &Socket) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: the kernel writes one integer.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    assert_eq!(result, 0, "FIONREAD");
    u64::try_from(count).expect("a count")
}

fn arrive(world: &Neighbours, from: usize, to: SocketAddr) -> Socket {
    world.pods[from].connect(to).expect("native")
}

#[test]
fn native_connections_to_open_ports_are_recorded() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen(V4[SERVER]);
    let to = local(&app);
    let open = Inbound {
        default: InboundMode::Strict,
        ports: [(to.port(), InboundMode::Open)].into(),
        probe_ports: [9090].into(),
    };
    world.dataplane.set_inbound(world.pods[SERVER].cookie, &open).expect("rules");
    world.dataplane.release(world.pods[OTHER].cookie).expect("released");
    for (name, ends, sent, reason) in ROWS {
        let client = arrive(&world, OTHER, to);
        let (server, from) = accept(&app);
        let opened = world.record(RecordKind::Opened, from);
        assert_eq!((opened.path, opened.server, opened.probe), (Path::Native, to, false), "{name}");
        assert_eq!((opened.source, opened.destination), (None, Some(world.number(SERVER))), "{name}");
        let flows = world.flows();
        assert_eq!(flows.len(), 1, "{name}");
        assert_eq!((flows[0].path, flows[0].source), (Path::Native, None), "{name}");
        assert_eq!(flows[0].server_cookie, server.cookie().ok(), "{name}");
        ends(client, server);
        assert_ended(name, &world.record(RecordKind::Closed, from), sent, reason);
        world.until_no_flow_is_tracked();
    }

    // A probe is marked as one.
    let health = world.pods[SERVER].listen_at(at(V4[SERVER], 9090));
    let node = world.node.socket(socket2::Domain::IPV4);
    node.bind(&at(NODE, 0).into()).expect("bound");
    node.connect(&local(&health).into()).expect("a probe passes");
    let (server, from) = accept(&health);
    assert_eq!(from.ip(), address(NODE));
    assert!(world.record(RecordKind::Opened, from).probe);
    assert!(world.flows()[0].probe);
    drop((node, server));
    assert!(world.record(RecordKind::Closed, from).probe);
    world.until_no_flow_is_tracked();

    // Connections within the pod, and those of the daemon, are not recorded.
    world.dataplane.remove_destination(address(V4[SERVER])).expect("its own address is not captured");
    let inside = world.pods[SERVER].connect(to).expect("from within the pod");
    let (server, _) = accept(&app);
    assert_eq!(world.flows(), [], "a connection within a pod");
    drop((inside, server));
    let tunnel = arrive(&world, OTHER, at(V4[SERVER], 15008));
    let (server, _) = accept(&world.daemons[SERVER].hbone_v4);
    let checked = Inbound { default: InboundMode::Check, ports: [].into(), probe_ports: [].into() };
    world.dataplane.set_inbound(world.pods[SERVER].cookie, &checked).expect("rules");
    let plaintext = arrive(&world, OTHER, to);
    let (also, _) = accept(&world.daemons[SERVER].plaintext_v4);
    drop((tunnel, server, plaintext, also));
    assert_eq!(world.flows(), [], "connections of the daemon");
    assert_eq!(world.remaining_records(), [], "neither is recorded");
}
