//! Outbound connections of apps in enrolled pods.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;

use ambit_abi::{NetnsCookie, limits};
use ambit_loader::{KernelReason, Listeners};
use aya::maps::{HashMap, Map, MapData};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{
    Lab, MESH_V4, MESH_V6, NODE_V4, NODE_V6, POD_V4, Pod, STRANGER_V4, STRANGER_V6, accept, assert_connected,
    at, counter, local, peer, port, until,
};
use crate::leaks::pins;
use crate::system::disconnect;

#[test]
fn mesh_destinations_are_captured() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    let mapped = format!("::ffff:{MESH_V4}");
    let rows = [
        ("IPv4", at(MESH_V4, 80), at(MESH_V4, 80)),
        ("IPv6", at(MESH_V6, 80), at(MESH_V6, 80)),
        ("v4-mapped", at(&mapped, 80), at(MESH_V4, 80)),
        ("a high port", at(MESH_V4, 65535), at(MESH_V4, 65535)),
        ("ztunnel's own port", at(MESH_V6, 15008), at(MESH_V6, 15008)),
    ];
    for (name, destination, original) in rows {
        let client = pod.connect(destination).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (server, found) = daemon.captured(&dataplane, destination);
        assert_eq!(found, Some(original), "{name}: the original destination");
        assert_eq!(peer(&client), destination, "{name}: the app sees its destination");
        assert!(
            peer(&server).ip().to_canonical().is_loopback(),
            "{name}: the daemon sees the pod's loopback"
        );
        assert_connected(name, &client, &server);
    }
    until("no hand-off remains", || dataplane.pending_handoffs().expect("hand-offs") == 0);
}

#[test]
fn other_connections_are_not_captured() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    let plain = Pod::new();
    for (name, from, to) in [
        ("enrolled, to a destination outside the mesh, IPv4", &pod, NODE_V4),
        ("enrolled, to a destination outside the mesh, IPv6", &pod, NODE_V6),
        ("not enrolled, IPv4", &plain, STRANGER_V4),
        ("not enrolled, IPv6", &plain, STRANGER_V6),
    ] {
        // Mesh destinations have no effect for a pod that is not enrolled.
        dataplane.add_destination(crate::lab::address(STRANGER_V4)).expect("a destination");
        dataplane.add_destination(crate::lab::address(STRANGER_V6)).expect("a destination");
        let listener = from.outside.listen(to);
        let client = from.connect(local(&listener)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (server, seen) = accept(&listener);
        assert_eq!(seen, local(&client), "{name}: no hop in between");
        assert_eq!(peer(&client), local(&listener), "{name}");
        assert_connected(name, &client, &server);
    }
    for name in ["127.0.0.1", "::1", "::ffff:127.0.0.1", POD_V4] {
        let listener = if name.contains("ffff") { pod.listen("127.0.0.1") } else { pod.listen(name) };
        let client = pod.connect(at(name, port(&listener))).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (server, _) = accept(&listener);
        assert_eq!(peer(&client).ip(), crate::lab::address(name), "{name}");
        assert_connected(name, &client, &server);
    }
    let udp = pod.run(|| Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).expect("a socket"));
    udp.connect(&at(MESH_V4, 53).into()).expect("connected UDP");
    assert_eq!(peer(&udp), at(MESH_V4, 53));
    assert_eq!(local(&udp).ip(), crate::lab::address(POD_V4), "UDP keeps its route");
    drop(daemon);
}

#[test]
fn direct_connections_to_the_listener_have_no_original_destination() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    for listener in [&daemon.outbound_v4, &daemon.outbound_v6] {
        let _client = pod.connect(local(listener)).expect("the listener answers");
        let (server, _) = accept(listener);
        assert_eq!(dataplane.original_destination(server.as_fd()).expect("the socket's storage"), None);
    }
}

#[test]
fn connections_without_a_listener_are_refused() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    let only = |v4, v6| Listeners { outbound_v4: v4, outbound_v6: v6, ..daemon.listeners() };
    let (v4, v6) = (Some(daemon.outbound_v4.as_fd()), Some(daemon.outbound_v6.as_fd()));
    let mapped = format!("::ffff:{MESH_V4}");
    let rows = [
        ("none, IPv4", only(None, None), MESH_V4, false),
        ("none, IPv6", only(None, None), MESH_V6, false),
        ("only IPv6, to IPv4", only(None, v6), MESH_V4, false),
        ("only IPv6, to v4-mapped", only(None, v6), mapped.as_str(), false),
        ("only IPv6, to IPv6", only(None, v6), MESH_V6, true),
        ("only IPv4, to IPv6", only(v4, None), MESH_V6, false),
        ("only IPv4, to v4-mapped", only(v4, None), mapped.as_str(), true),
    ];
    for (name, listeners, destination, reached) in rows {
        dataplane.set_listeners(pod.cookie, &listeners).expect("listeners");
        let before = counter(&dataplane, KernelReason::OutboundListenerMissing);
        let result = pod.connect(at(destination, 80));
        assert_eq!(
            result.as_ref().err().map(std::io::Error::kind),
            (!reached).then_some(ErrorKind::PermissionDenied),
            "{name}"
        );
        let counted = counter(&dataplane, KernelReason::OutboundListenerMissing) - before;
        assert_eq!(counted, u64::from(!reached), "{name}: the refusal is counted");
    }
    dataplane.set_listeners(pod.cookie, &daemon.listeners()).expect("listeners");
    let ports = [("127.0.0.1", port(&daemon.outbound_v4)), ("::1", port(&daemon.outbound_v6))];
    drop(daemon);
    for destination in [MESH_V4, MESH_V6, mapped.as_str()] {
        // A process that another test starts holds our listeners until it executes its program.
        until(&format!("{destination}: the dead daemon's listener refuses"), || {
            pod.connect(at(destination, 80)).is_err_and(|it| it.kind() == ErrorKind::ConnectionRefused)
        });
    }
    // Another process of the pod takes the dead daemon's ports.
    let taken = ports.map(|(address, port)| pod.listen_at(at(address, port)));
    for destination in [MESH_V4, MESH_V6, mapped.as_str()] {
        let error = pod.connect(at(destination, 80)).expect_err("not for the process on the daemon's port");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{destination}");
    }
    for app in &taken {
        let _client = pod.connect(local(app)).expect("its own connections reach it");
        let _ = accept(app);
    }
    until("no hand-off remains", || dataplane.pending_handoffs().expect("hand-offs") == 0);
}

#[test]
fn reconnected_sockets_have_no_earlier_state() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    let mapped = format!("::ffff:{MESH_V4}");
    let rows = [
        ("IPv4", MESH_V4, "127.0.0.1", NODE_V4),
        ("IPv6", MESH_V6, "::1", NODE_V6),
        ("v4-mapped", mapped.as_str(), "::ffff:127.0.0.1", "::ffff:10.1.0.1"),
    ];
    for (name, mesh, loopback, outside) in rows {
        let socket = pod.socket(Domain::for_address(at(mesh, 80)));
        socket.connect(&at(mesh, 80).into()).expect("captured");
        let (_first, found) = daemon.captured(&dataplane, at(mesh, 80));
        assert_eq!(found.map(|it| it.port()), Some(80), "{name}");
        disconnect(&socket).expect("disconnecting");

        // Not captured now: no state of the captured connection may be visible.
        for (to, namespace) in [(loopback, &pod.inside), (outside, &pod.outside)] {
            let listening = crate::lab::address(to).to_canonical();
            let listener = namespace.listen_at(SocketAddr::new(listening, 0));
            socket
                .connect(&at(to, port(&listener)).into())
                .unwrap_or_else(|error| panic!("{name}, {to}: {error}"));
            let (server, _) = accept(&listener);
            assert_eq!(peer(&socket), at(to, port(&listener)), "{name}: the new destination");
            let storage = dataplane.original_destination(server.as_fd()).expect("the socket's storage");
            assert_eq!(storage, None, "{name}");
            disconnect(&socket).expect("disconnecting");
        }

        // Captured again, for another destination.
        socket.connect(&at(mesh, 81).into()).expect("captured");
        let (_second, found) = daemon.captured(&dataplane, at(mesh, 81));
        assert_eq!(found.map(|it| it.port()), Some(81), "{name}");
        assert_eq!(peer(&socket), at(mesh, 81), "{name}");
    }
}

#[test]
fn clients_that_close_before_accept_keep_their_original_destination() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    for destination in [at(MESH_V4, 514), at(MESH_V6, 514)] {
        let mut client = pod.connect(destination).expect("captured");
        client.write_all(b"fire and forget").expect("writing");
        drop(client);
        let (mut server, found) = daemon.captured(&dataplane, destination);
        assert_eq!(found, Some(destination));
        let mut text = String::new();
        server.read_to_string(&mut text).expect("reading to the end");
        assert_eq!(text, "fire and forget");
    }
}

#[test]
fn sockets_marked_by_the_daemon_are_not_captured_and_cannot_be_imitated() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    for node in [NODE_V4, NODE_V6] {
        // The peer's address is captured: without the mark the daemon would connect to itself.
        dataplane.add_destination(crate::lab::address(node)).expect("a destination");
        let listener = pod.outside.listen(node);
        let own = pod.socket(Domain::for_address(local(&listener)));
        dataplane.mark_outbound(own.as_fd()).expect("the mark");
        own.connect(&local(&listener).into()).expect("connected");
        let (_server, seen) = accept(&listener);
        assert_eq!(seen, local(&own), "not captured");
        assert_eq!(peer(&own), local(&listener));

        for mark in [1_u32, 0x539, u32::MAX] {
            let app = pod.socket(Domain::for_address(local(&listener)));
            app.set_mark(mark).expect("SO_MARK");
            app.connect(&local(&listener).into()).expect("captured");
            let (_server, found) = daemon.captured(&dataplane, local(&listener));
            assert_eq!(found, Some(local(&listener)), "a packet mark of {mark} has no effect");
        }
    }
}

#[test]
fn destinations_are_added_and_removed() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    for node in [NODE_V4, NODE_V6] {
        let address = crate::lab::address(node);
        let listener = pod.outside.listen(node);
        dataplane.add_destination(address).expect("a destination");
        dataplane.add_destination(address).expect("again: no change");
        assert!(dataplane.destinations().expect("destinations").contains(&address));
        let _client = pod.connect(local(&listener)).expect("captured");
        assert_eq!(daemon.captured(&dataplane, local(&listener)).1, Some(local(&listener)));

        dataplane.remove_destination(address).expect("removed");
        dataplane.remove_destination(address).expect("again: no error");
        assert!(!dataplane.destinations().expect("destinations").contains(&address));
        let client = pod.connect(local(&listener)).expect("not captured");
        assert_eq!(accept(&listener).1, local(&client));
    }
}

#[test]
fn flood_in_one_pod_does_not_affect_another() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let (flooder, other) = (Pod::new(), Pod::new());
    let (daemon, others) = (flooder.enrol(&dataplane), other.enrol(&dataplane));
    // One connection fills the accept queue; the SYNs of all others are not answered.
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 20_000, 20_000)
        .expect("descriptors");
    let full = flooder.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&at("127.0.0.1", 0).into()).expect("an address");
        socket.listen(0).expect("listening");
        socket
    });
    let listeners = Listeners { outbound_v4: Some(full.as_fd()), ..daemon.listeners() };
    dataplane.set_listeners(flooder.cookie, &listeners).expect("listeners");
    // All but 8,000 of those that are shared out are in use, as if by other pods: half of these are its own.
    let pin = pins(lab.last()).into_iter().find(|pin| pin.ends_with("POD_HANDOFFS")).expect("pinned");
    let map = Map::HashMap(MapData::from_pin(pin).expect("the map"));
    let mut counts: HashMap<_, u64, u64> = HashMap::try_from(map).expect("a hash map");
    counts.insert(NetnsCookie::ALL.0, limits::SHARED_HANDOFFS - 8_000, 0).expect("a count");
    let before = counter(&dataplane, KernelReason::HandoffsExhausted);
    let (waiting, refused) = flooder.run(|| {
        let mut waiting = Vec::new();
        for _ in 0..5000 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.set_nonblocking(true).expect("non-blocking");
            match socket.connect(&at(MESH_V4, 80).into()) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => return (waiting, true),
                _ => waiting.push(socket),
            }
        }
        (waiting, false)
    });
    assert!(refused, "{} connections are pending", waiting.len());
    assert!(counter(&dataplane, KernelReason::HandoffsExhausted) > before, "the refusal is counted");
    let pending = dataplane.pending_handoffs().expect("hand-offs");
    assert!((3_900..=4_100).contains(&pending), "half of what is free: {pending}");

    let _client = other.connect(at(MESH_V4, 80)).expect("another pod is not affected");
    assert_eq!(others.captured(&dataplane, at(MESH_V4, 80)).1, Some(at(MESH_V4, 80)));

    drop(waiting);
    until("hand-offs of pending connections are removed", || {
        dataplane.pending_handoffs().expect("hand-offs") == 0
    });
    dataplane.set_listeners(flooder.cookie, &daemon.listeners()).expect("listeners");
    let _client = flooder.connect(at(MESH_V4, 80)).expect("the pod itself connects again");
    assert_eq!(daemon.captured(&dataplane, at(MESH_V4, 80)).1, Some(at(MESH_V4, 80)));
}
