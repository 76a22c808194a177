//! The direct path: between pods of one node, by the kernel alone, while a cached verdict holds.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use ambit_loader::{KernelReason, Lease, Path, RecordKind};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Namespace, accept, address, assert_connected, at, counter, local, peer, until};
use crate::neighbours::{CLIENT, LEASE, Neighbours, OTHER, SERVER, V4, V6};
use crate::system::set_option;

/// The address as IPv4 if it is v4-mapped.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[test]
fn allowed_connections_take_the_direct_path() {
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
        assert_eq!(peer(&client), to, "{name}: the client sees its destination");
        assert_connected(name, &client, &server);

        let opened = world.record(RecordKind::Opened, from);
        let flows = world.flows();
        let [flow] = flows.as_slice() else { panic!("{name}: expected one flow: {flows:?}") };
        assert_eq!((flow.path, flow.client, flow.server), (Path::Direct, from, canonical(to)), "{name}");
        assert_eq!(
            (flow.source, flow.destination),
            (Some(world.number(CLIENT)), world.number(SERVER)),
            "{name}"
        );
        assert_eq!(flow.original_destination, Some(canonical(to)), "{name}");
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
        assert_eq!(opened.original_destination, Some(canonical(to)), "{name}");

        drop((client, server));
        let closed = world.record(RecordKind::Closed, from);
        assert_eq!((closed.from_client, closed.from_server), (4, 0), "{name}");
        assert_eq!((closed.opened, closed.path), (opened.opened, Path::Direct), "{name}");
        assert!(closed.at > closed.opened, "{name}");
        world.until_no_flow_is_tracked();
    }
    assert_eq!(world.remaining_records(), [], "no other records");
    assert_eq!(world.dataplane.pending_handoffs().expect("hand-offs"), 0);
}

/// Connects, and asserts that the connection is captured.
fn assert_tunnelled(world: &Neighbours, name: &str, from: usize, to: SocketAddr) {
    let client = world.pods[from].connect(to).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (server, original) = world.daemons[from].captured(&world.dataplane, to);
    assert_eq!(original, Some(to), "{name}");
    assert_connected(name, &client, &server);
    assert_eq!(world.flows(), [], "{name}: no flow is tracked");
}

#[test]
fn without_a_valid_verdict_connections_take_the_tunnel() {
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

        let stale = world.verdict(CLIENT, SERVER, to);
        dataplane.add_verdict(&stale).expect("cached");
        dataplane.advance_generation(world.number(SERVER)).expect("advanced");
        assert_tunnelled(&world, "a verdict of an earlier generation", CLIENT, to);
        dataplane.add_verdict(&stale).expect("cached");
        assert_tunnelled(&world, "a verdict of an earlier generation, cached late", CLIENT, to);

        world.allow(CLIENT, SERVER, to);
        dataplane.renew_lease(Lease::Verdicts, Duration::ZERO).expect("no lease");
        assert_tunnelled(&world, "the lease has ended", CLIENT, to);
        dataplane.renew_lease(Lease::Verdicts, LEASE).expect("a lease");
        let client = world.pods[CLIENT].connect(to).expect("direct");
        let (server, _) = accept(&app);
        assert_eq!(world.flows().len(), 1, "the flow is tracked");
        drop((client, server));
        world.until_no_flow_is_tracked();
        dataplane.advance_generation(world.number(SERVER)).expect("advanced");
    }
    world.allow(CLIENT, CLIENT, at(V4[CLIENT], 8080));
    assert_tunnelled(&world, "the client itself", CLIENT, at(V4[CLIENT], 8080));

    world.allow(CLIENT, SERVER, at(V4[SERVER], 8080));
    assert!(dataplane.remove_stale_verdicts().expect("verdicts") > 0);
    assert_eq!(world.entries("VERDICTS"), 2, "valid verdicts are kept");
    dataplane.release(world.pods[SERVER].cookie).expect("released");
    assert_eq!(dataplane.generation(world.number(SERVER)).expect("generations"), None);
    assert_eq!(world.entries("VERDICTS"), 1, "verdicts of a released pod are removed");
    assert_tunnelled(&world, "the destination is released", CLIENT, at(V4[SERVER], 8080));
    dataplane.advance_generation(world.number(SERVER)).expect("not enrolled is no error");
    assert_eq!(dataplane.generation(world.number(SERVER)).expect("generations"), None);
}

#[test]
fn workload_numbers_are_not_reused() {
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
fn untracked_connections_to_a_strict_pod_are_refused() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen(V4[SERVER]);
    let to = local(&app);
    world.allow(CLIENT, SERVER, to);
    world.dataplane.release(world.pods[OTHER].cookie).expect("released");
    // From a pod that is not enrolled, by its own address and by that of an enrolled pod.
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
        assert_eq!(refused.source, probable, "by its address");
        assert_eq!((refused.netns, refused.opened), (world.pods[SERVER].cookie, 0));
    }
    app.set_nonblocking(true).expect("non-blocking");
    assert_eq!(app.accept().expect_err("no connection").kind(), ErrorKind::WouldBlock);
}

/// Sends a SYN with a forged source from a pod that may send raw packets.
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
fn forged_packets_are_refused() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen(V4[SERVER]);
    let to = local(&app);
    world.allow(CLIENT, SERVER, to);
    let refused = |name: &str, source: SocketAddr| {
        forge(&world.pods[OTHER], source, to);
        let record = world.record(RecordKind::Refused, source);
        assert_eq!((record.reason, record.server), (Some(KernelReason::PlaintextRefused), to), "{name}");
    };
    // Shows that the program sees a forged packet at all.
    refused("of no connection", at(V4[CLIENT], 40_000));

    let client = world.pods[CLIENT].connect(to).expect("direct");
    let (server, source) = accept(&app);
    drop((client, server));
    world.until_no_flow_is_tracked();
    refused("of a closed connection", source);

    world.dataplane.advance_generation(world.number(SERVER)).expect("advanced");
    let client = world.pods[CLIENT].connect(to).expect("captured");
    let tunnelled = at(V4[CLIENT], local(&client).port());
    let _carried = world.daemons[CLIENT].captured(&world.dataplane, to);
    refused("of a tunnelled connection", tunnelled);

    // Of an open connection: it is for the connection's socket, which ignores it, and no new connection
    // arises.
    world.allow(CLIENT, SERVER, to);
    let client = world.pods[CLIENT].connect(to).expect("direct");
    let (server, source) = accept(&app);
    forge(&world.pods[OTHER], source, to);
    refused("after the packet", at(V4[CLIENT], 40_001));
    assert_connected("the open connection continues", &client, &server);
    assert_eq!(world.flows().len(), 1);
    app.set_nonblocking(true).expect("non-blocking");
    assert_eq!(app.accept().expect_err("no connection").kind(), ErrorKind::WouldBlock);
}

#[test]
fn policy_change_during_the_handshake_is_detected() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen(V4[SERVER]);
    let to = local(&app);
    let server = world.number(SERVER);

    // After the SYN has passed and before the connection is established, which waits for the first byte.
    set_option(&app, libc::TCP_DEFER_ACCEPT, 20).expect("deferred");
    world.allow(CLIENT, SERVER, to);
    let mut client = world.pods[CLIENT].connect(to).expect("direct");
    assert_eq!(world.flows()[0].server_cookie, None, "not established yet");
    world.dataplane.advance_generation(server).expect("advanced");
    client.write_all(b"ping").expect("writing");
    let stale = world.record(RecordKind::Stale, local(&client));
    assert_eq!((stale.reason, stale.path), (Some(KernelReason::FlowStale), Path::Direct));
    assert_eq!(stale.source, Some(world.number(CLIENT)));
    let (accepted, _) = accept(&app);
    assert_eq!(stale.server_cookie, accepted.cookie().ok(), "the cookie by which the daemon can close it");
    drop((client, accepted));
    world.until_no_flow_is_tracked();

    // Before the SYN arrives.
    world.allow(CLIENT, SERVER, to);
    let link = |state: &str| world.node.run(|| crate::lab::ip(&format!("link set pod1 {state}")));
    link("down");
    let client = world.pods[CLIENT].socket(Domain::IPV4);
    client.set_nonblocking(true).expect("non-blocking");
    client.connect(&to.into()).expect_err("in progress");
    until("the flow is tracked", || world.flows().len() == 1);
    let flow = world.flows().remove(0);
    world.dataplane.advance_generation(server).expect("advanced");
    let before = counter(&world.dataplane, KernelReason::FlowStale);
    link("up");
    let refused = world.record(RecordKind::Refused, flow.client);
    assert_eq!((refused.reason, refused.path), (Some(KernelReason::FlowStale), Path::Direct));
    assert!(counter(&world.dataplane, KernelReason::FlowStale) > before, "the refusal is counted");
    until("the client gets an error", || client.take_error().expect("its error").is_some());
    world.until_no_flow_is_tracked();
}

#[test]
fn flows_tracked_for_one_pod_do_not_reach_another() {
    let world = Neighbours::new();
    let app = world.pods[OTHER].listen(V4[OTHER]);
    let to = local(&app);
    // As if the address had been the server's when the verdict was decided.
    world.allow(CLIENT, SERVER, to);
    let error = world.pods[CLIENT].connect(to).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(counter(&world.dataplane, KernelReason::FlowMisdirected), 1);
    world.until_no_flow_is_tracked();
}

#[test]
fn failed_connections_are_not_tracked() {
    let world = Neighbours::new();
    let unused = at(V4[SERVER], 9);
    world.allow(CLIENT, SERVER, unused);
    let error = world.pods[CLIENT].connect(unused).expect_err("no listener");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "as without the mesh");
    world.until_no_flow_is_tracked();
    assert_eq!(world.remaining_records(), [], "no record of a refusal by the app's own kernel");

    world.node.run(|| crate::lab::ip("link set pod1 down"));
    let client = world.pods[CLIENT].socket(Domain::IPV4);
    client.set_nonblocking(true).expect("non-blocking");
    client.connect(&unused.into()).expect_err("in progress");
    assert_eq!(world.flows().len(), 1);
    drop(client);
    world.until_no_flow_is_tracked();

    // A client that has closed when the connection is established.
    world.node.run(|| crate::lab::ip("link set pod1 up"));
    let app = world.pods[SERVER].listen(V4[SERVER]);
    world.allow(CLIENT, SERVER, local(&app));
    for _ in 0..50 {
        let client = world.pods[CLIENT].connect(local(&app)).expect("direct");
        client.set_linger(Some(Duration::ZERO)).expect("reset on close");
        drop(client);
    }
    world.until_no_flow_is_tracked();
}
