//! The direct path: from one pod of a node to another, by the kernel alone, and only where a verdict holds.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use ambit_loader::{KernelReason, Path, RecordKind};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Namespace, accept, address, at, local, peer, until};
use crate::neighbours::{CLIENT, LEASE, Neighbours, OTHER, SERVER, V4, V6};
use crate::outbound::{assert_joined, counter};
use crate::unusual::set_option;

/// What a socket for both families shows as v4-mapped, as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[test]
fn permitted_connections_go_straight() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen_dual(8080);
    let mapped = format!("::ffff:{}", V4[SERVER]);
    for (name, text) in [("IPv4", V4[SERVER]), ("IPv6", V6[SERVER]), ("v4-mapped", mapped.as_str())] {
        let to = at(text, 8080);
        world.allow(CLIENT, SERVER, canonical(to));
        let client = world.pods[CLIENT].connect(to).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (server, seen) = accept(&app);
        let from = canonical(local(&client));
        assert_eq!(canonical(seen), from, "{name}: the server sees the client itself");
        assert_eq!(
            from.ip(),
            canonical(at(if to.is_ipv4() || text.contains("ffff") { V4[CLIENT] } else { V6[CLIENT] }, 0))
                .ip()
        );
        assert_eq!(peer(&client), to, "{name}: the client sees whom it asked for");
        assert_joined(name, &client, &server);

        let opened = world.record(RecordKind::Opened, from);
        let flows = world.flows();
        let [flow] = flows.as_slice() else { panic!("{name}: one connection is listed: {flows:?}") };
        assert_eq!((flow.path, flow.client, flow.server), (Path::Direct, from, canonical(to)), "{name}");
        assert_eq!(
            (flow.source, flow.destination),
            (Some(world.number(CLIENT)), world.number(SERVER)),
            "{name}"
        );
        assert_eq!(flow.asked, Some(canonical(to)), "{name}");
        assert_eq!(flow.client_cookie, client.cookie().ok(), "{name}");
        assert_eq!(flow.server_cookie, server.cookie().ok(), "{name}");
        assert_eq!(flow.client_netns, Some(world.pods[CLIENT].cookie), "{name}");
        assert_eq!(flow.server_netns, Some(world.pods[SERVER].cookie), "{name}");
        assert!(!flow.probe);
        assert_eq!(
            (opened.path, opened.client, opened.server),
            (Path::Direct, Some(from), canonical(to)),
            "{name}"
        );
        assert_eq!(opened.source, Some(world.number(CLIENT)), "{name}");
        assert_eq!(opened.destination, Some(world.number(SERVER)), "{name}");
        assert_eq!(
            (opened.netns, opened.server_cookie),
            (world.pods[SERVER].cookie, flow.server_cookie),
            "{name}"
        );
        assert_eq!(opened.asked, Some(canonical(to)), "{name}");

        drop((client, server));
        let closed = world.record(RecordKind::Closed, from);
        assert_eq!((closed.from_client, closed.from_server), (4, 0), "{name}");
        assert_eq!((closed.opened, closed.path), (opened.opened, Path::Direct), "{name}");
        assert!(closed.at > closed.opened, "{name}");
        world.until_none_is_listed();
    }
    assert_eq!(world.rest(), [], "nothing else is recorded");
    assert_eq!(world.dataplane.pending_handoffs().expect("hand-offs"), 0);
}

/// The client connects, and the connection must be the daemon's.
fn assert_tunnelled(world: &Neighbours, name: &str, from: usize, to: SocketAddr) {
    let client = world.pods[from].connect(to).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (server, asked) = world.daemons[from].captured(&world.dataplane, to);
    assert_eq!(asked, Some(to), "{name}");
    assert_joined(name, &client, &server);
    assert_eq!(world.flows(), [], "{name}: it is not listed");
}

#[test]
fn without_a_verdict_that_holds_it_takes_the_tunnel() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen_dual(8080);
    let dataplane = &world.dataplane;
    for to in [at(V4[SERVER], 8080), at(V6[SERVER], 8080)] {
        assert_tunnelled(&world, "no verdict", CLIENT, to);
        world.allow(CLIENT, SERVER, SocketAddr::new(to.ip(), 8081));
        assert_tunnelled(&world, "a verdict for another port", CLIENT, to);
        world.allow(CLIENT, SERVER, at(V4[OTHER], 8080));
        assert_tunnelled(&world, "a verdict for another address", CLIENT, to);
        world.allow(OTHER, SERVER, to);
        assert_tunnelled(&world, "a verdict for another client", CLIENT, to);

        let stale = world.yes(CLIENT, SERVER, to);
        dataplane.remember(&stale).expect("remembered");
        dataplane.bump(world.number(SERVER)).expect("bumped");
        assert_tunnelled(&world, "of an earlier generation", CLIENT, to);
        dataplane.remember(&stale).expect("remembered");
        assert_tunnelled(&world, "written late", CLIENT, to);

        world.allow(CLIENT, SERVER, to);
        dataplane.renew_lease(Duration::ZERO).expect("no lease");
        assert_tunnelled(&world, "the lease has run out", CLIENT, to);
        dataplane.renew_lease(LEASE).expect("a lease");
        let client = world.pods[CLIENT].connect(to).expect("and now it is direct");
        let (server, _) = accept(&app);
        assert_eq!(world.flows().len(), 1, "it is listed");
        drop((client, server));
        world.until_none_is_listed();
        dataplane.bump(world.number(SERVER)).expect("bumped");
    }
    world.allow(CLIENT, CLIENT, at(V4[CLIENT], 8080));
    assert_tunnelled(&world, "the client itself", CLIENT, at(V4[CLIENT], 8080));

    world.allow(CLIENT, SERVER, at(V4[SERVER], 8080));
    assert!(dataplane.forget_stale_verdicts().expect("verdicts") > 0);
    assert_eq!(world.held("VERDICTS"), 2, "those that hold are kept");
    dataplane.release(world.pods[SERVER].cookie).expect("released");
    assert_eq!(dataplane.generation(world.number(SERVER)).expect("generations"), None);
    assert_eq!(world.held("VERDICTS"), 1, "those of a released pod are gone");
    assert_tunnelled(&world, "the destination is released", CLIENT, at(V4[SERVER], 8080));
    dataplane.bump(world.number(SERVER)).expect("bumping what is not enrolled is no error");
    assert_eq!(dataplane.generation(world.number(SERVER)).expect("generations"), None);
}

#[test]
fn numbers_are_not_used_again() {
    let world = Neighbours::new();
    let pod = &world.pods[SERVER];
    let first = world.number(SERVER);
    let again = world.dataplane.enrol(pod.as_fd(), pod.cookie, "again").expect("enrolled already");
    assert_eq!(first, again, "the same enrolment");
    world.dataplane.release(pod.cookie).expect("released");
    let second = world.dataplane.enrol(pod.as_fd(), pod.cookie, "again").expect("enrolled");
    assert!(second > first && second > world.number(OTHER), "greater than all before");
}

#[test]
fn what_is_not_announced_is_refused() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen(V4[SERVER]);
    let to = local(&app);
    world.allow(CLIENT, SERVER, to);
    world.dataplane.release(world.pods[OTHER].cookie).expect("released");
    // Neither a pod that is not enrolled, nor one that takes the address of one that is.
    for from in [V4[OTHER], V4[CLIENT]] {
        let socket = world.pods[OTHER].socket(Domain::IPV4);
        socket.set_ip_transparent_v4(true).expect("any address");
        socket.bind(&at(from, 0).into()).expect("bound");
        let from = local(&socket);
        let result = socket.connect_timeout(&to.into(), Duration::from_millis(300));
        assert!(result.is_err(), "{from}");
        let refused = world.record(RecordKind::Refused, from);
        assert_eq!(refused.reason, Some(KernelReason::PlaintextRefused));
        assert_eq!((refused.path, refused.server), (Path::Native, to));
        assert_eq!(refused.destination, Some(world.number(SERVER)));
        let probable = (from.ip() == address(V4[CLIENT])).then(|| world.number(CLIENT));
        assert_eq!(refused.source, probable, "as its address says");
        assert_eq!((refused.netns, refused.opened), (world.pods[SERVER].cookie, 0));
    }
    app.set_nonblocking(true).expect("non-blocking");
    assert_eq!(app.accept().expect_err("nothing came").kind(), ErrorKind::WouldBlock);
}

/// A SYN with any source, from a pod that may send raw packets.
fn forge(from: &Namespace, source: SocketAddr, destination: SocketAddr) {
    let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (source, destination) else {
        panic!("IPv4 only")
    };
    let mut tcp = [0_u8; 20];
    tcp[..2].copy_from_slice(&source.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&destination.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = 2;
    tcp[14..16].copy_from_slice(&1024_u16.to_be_bytes());
    let mut pseudo = Vec::new();
    pseudo.extend(source.ip().octets());
    pseudo.extend(destination.ip().octets());
    pseudo.extend([0, 6, 0, 20]);
    pseudo.extend(tcp);
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(source.ip().octets());
    packet.extend(destination.ip().octets());
    packet.extend(tcp);
    let raw = from.run(|| {
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).expect("a raw socket")
    });
    let to = SocketAddr::new((*destination.ip()).into(), 0);
    raw.send_to(&packet, &to.into()).expect("sent");
}

#[test]
fn forged_packets_find_no_way_in() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen(V4[SERVER]);
    let to = local(&app);
    world.allow(CLIENT, SERVER, to);
    let refused = |name: &str, source: SocketAddr| {
        forge(&world.pods[OTHER], source, to);
        let record = world.record(RecordKind::Refused, source);
        assert_eq!((record.reason, record.server), (Some(KernelReason::PlaintextRefused), to), "{name}");
    };
    // A packet like this is looked at at all: where plaintext is welcome it is no refusal.
    refused("out of the blue", at(V4[CLIENT], 40_000));

    let client = world.pods[CLIENT].connect(to).expect("direct");
    let (server, source) = accept(&app);
    drop((client, server));
    world.until_none_is_listed();
    refused("of a connection that has closed", source);

    world.dataplane.bump(world.number(SERVER)).expect("bumped");
    let client = world.pods[CLIENT].connect(to).expect("captured");
    let tunnelled = at(V4[CLIENT], local(&client).port());
    let _carried = world.daemons[CLIENT].captured(&world.dataplane, to);
    refused("of a connection in the tunnel", tunnelled);

    // Of an open one: it belongs to a socket, which is not moved by it, and nothing new comes of it.
    world.allow(CLIENT, SERVER, to);
    let client = world.pods[CLIENT].connect(to).expect("direct");
    let (server, source) = accept(&app);
    forge(&world.pods[OTHER], source, to);
    refused("the packet before it was taken", at(V4[CLIENT], 40_001));
    assert_joined("the open one goes on", &client, &server);
    assert_eq!(world.flows().len(), 1);
    app.set_nonblocking(true).expect("non-blocking");
    assert_eq!(app.accept().expect_err("nothing came").kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_change_on_the_way_is_seen() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen(V4[SERVER]);
    let to = local(&app);
    let server = world.number(SERVER);

    // After the SYN has passed, before the connection is established: that waits for the first byte.
    set_option(&app, libc::TCP_DEFER_ACCEPT, 20).expect("deferred");
    world.allow(CLIENT, SERVER, to);
    let mut client = world.pods[CLIENT].connect(to).expect("direct");
    assert_eq!(world.flows()[0].server_cookie, None, "not established yet");
    world.dataplane.bump(server).expect("bumped");
    client.write_all(b"ping").expect("writing");
    let stale = world.record(RecordKind::Stale, local(&client));
    assert_eq!((stale.reason, stale.path), (Some(KernelReason::FlowStale), Path::Direct));
    assert_eq!(stale.source, Some(world.number(CLIENT)));
    let (accepted, _) = accept(&app);
    assert_eq!(stale.server_cookie, accepted.cookie().ok(), "the daemon can close it by that");
    drop((client, accepted));
    world.until_none_is_listed();

    // Before the SYN arrives.
    world.allow(CLIENT, SERVER, to);
    let link = |state: &str| world.node.run(|| crate::lab::ip(&format!("link set pod1 {state}")));
    link("down");
    let client = world.pods[CLIENT].socket(Domain::IPV4);
    client.set_nonblocking(true).expect("non-blocking");
    client.connect(&to.into()).expect_err("on its way");
    until("it is listed", || world.flows().len() == 1);
    let flow = world.flows().remove(0);
    world.dataplane.bump(server).expect("bumped");
    let before = counter(&world.dataplane, KernelReason::FlowStale);
    link("up");
    let refused = world.record(RecordKind::Refused, flow.client);
    assert_eq!((refused.reason, refused.path), (Some(KernelReason::FlowStale), Path::Direct));
    assert!(counter(&world.dataplane, KernelReason::FlowStale) > before, "it is counted");
    until("the client learns it", || client.take_error().expect("its error").is_some());
    world.until_none_is_listed();
}

#[test]
fn listed_for_one_pod_it_does_not_reach_another() {
    let world = Neighbours::new();
    let app = world.pods[OTHER].listen(V4[OTHER]);
    let to = local(&app);
    // As if the address had been the server's when the daemon said yes.
    world.allow(CLIENT, SERVER, to);
    let error = world.pods[CLIENT].connect(to).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(counter(&world.dataplane, KernelReason::FlowMisdirected), 1);
    world.until_none_is_listed();
}

#[test]
fn connections_that_fail_are_not_listed() {
    let world = Neighbours::new();
    let nobody = at(V4[SERVER], 9);
    world.allow(CLIENT, SERVER, nobody);
    let error = world.pods[CLIENT].connect(nobody).expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "as without a mesh");
    world.until_none_is_listed();
    assert_eq!(world.rest(), [], "the app's own refusal is none of the mesh's");

    world.node.run(|| crate::lab::ip("link set pod1 down"));
    let client = world.pods[CLIENT].socket(Domain::IPV4);
    client.set_nonblocking(true).expect("non-blocking");
    client.connect(&nobody.into()).expect_err("on its way");
    assert_eq!(world.flows().len(), 1);
    drop(client);
    world.until_none_is_listed();

    // A client that has gone when the connection is established.
    world.node.run(|| crate::lab::ip("link set pod1 up"));
    let app = world.pods[SERVER].listen(V4[SERVER]);
    world.allow(CLIENT, SERVER, local(&app));
    for _ in 0..50 {
        let client = world.pods[CLIENT].connect(local(&app)).expect("direct");
        client.set_linger(Some(Duration::ZERO)).expect("reset on close");
        drop(client);
    }
    world.until_none_is_listed();
}
