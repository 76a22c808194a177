//! Inbound connections of an enrolled pod: which socket gets them, and the peer that the app sees.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use ambit_loader::{HBONE_PORT, Inbound, InboundMode, KernelReason, Lease, Listeners, NetnsCookie};
use socket2::{Domain, Socket};

use crate::lab::{
    Lab, MESH_V4, NODE_V4, NODE_V6, POD_V4, POD_V6, Pod, accept, assert_connected, at, counter, local, peer,
    port, until,
};

fn mode(default: InboundMode) -> Inbound {
    Inbound { default, ports: [].into(), probe_ports: [].into() }
}

/// Connects from the node's namespace, from one of its addresses.
fn arrive(pod: &Pod, from: &str, to: SocketAddr) -> std::io::Result<Socket> {
    let socket = pod.outside.socket(Domain::for_address(to));
    socket.bind(&at(from, 0).into())?;
    socket.connect_timeout(&to.into(), crate::lab::DEADLINE)?;
    Ok(socket)
}

#[test]
fn tunnels_go_to_the_daemon() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    // An app that listens on the same port gets no connection.
    let _app = pod.listen_dual(HBONE_PORT);
    for default in [InboundMode::Open, InboundMode::Check, InboundMode::Strict] {
        dataplane.set_inbound(pod.cookie, &mode(default)).expect("a mode");
        for (from, to, listener) in [(NODE_V4, POD_V4, &daemon.hbone_v4), (NODE_V6, POD_V6, &daemon.hbone_v6)]
        {
            let client = arrive(&pod, from, at(to, HBONE_PORT)).expect("accepted");
            let (server, seen) = accept(listener);
            assert_eq!(local(&server), at(to, HBONE_PORT), "{default:?}: the pod's address");
            assert_eq!(seen, local(&client), "{default:?}: the real peer");
            assert_connected("tunnel", &client, &server);
        }
    }
}

/// The address as IPv4 if it is v4-mapped.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The outcome of a connection from outside.
#[derive(Debug, PartialEq, Eq)]
enum End {
    App,
    Daemon,
    Refused,
}

/// A pod with an app on two ports, and the daemon's listeners.
struct Arrivals<'a> {
    pod: &'a Pod,
    app: [&'a Socket; 2],
    plaintext: [&'a Socket; 2],
}

impl Arrivals<'_> {
    fn end(&self, from: &str, to: SocketAddr) -> End {
        let client = match arrive(self.pod, from, to) {
            Ok(client) => client,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return End::Refused,
            Err(error) => panic!("{from} → {to}: {error}"),
        };
        // The connection is in exactly one of the accept queues.
        let mut found = None;
        until("the connection is accepted", || {
            for (listener, end) in
                self.app.iter().map(|it| (it, true)).chain(self.plaintext.iter().map(|it| (it, false)))
            {
                listener.set_nonblocking(true).expect("non-blocking");
                if let Ok((server, seen)) = listener.accept() {
                    assert_eq!(
                        seen.as_socket().map(canonical),
                        Some(local(&client)),
                        "{from} → {to}: the real peer"
                    );
                    assert_eq!(canonical(local(&server)), to, "the pod's address and port");
                    found = Some(if end { End::App } else { End::Daemon });
                }
            }
            found.is_some()
        });
        found.expect("found above")
    }
}

#[test]
fn plaintext_is_treated_by_mode_and_port() {
    use InboundMode::{Check, Open, Strict};

    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    let own = [crate::lab::address(POD_V4), crate::lab::address(POD_V6)];
    dataplane.set_addresses(daemon.number, &own.into()).expect("addresses");
    let (app, other) = (pod.listen_dual(8080), pod.listen_dual(9090));
    drop(other);
    let (v4, v6) = (pod.listen_at(at(POD_V4, 9090)), pod.listen_at(at(POD_V6, 9090)));
    let arrivals =
        Arrivals { pod: &pod, app: [&app, &v4], plaintext: [&daemon.plaintext_v4, &daemon.plaintext_v6] };
    let arrivals_v6 = Arrivals { app: [&app, &v6], ..arrivals };
    let rows = [
        ("open", Open, None, None, 8080, End::App, End::App),
        ("check", Check, None, None, 8080, End::Daemon, End::Daemon),
        ("strict", Strict, None, None, 8080, End::Refused, End::Refused),
        ("open, but this port strict", Open, Some((8080, Strict)), None, 8080, End::Refused, End::Refused),
        ("open, another port strict", Open, Some((9090, Strict)), None, 8080, End::App, End::App),
        ("strict, but this port open", Strict, Some((8080, Open)), None, 8080, End::App, End::App),
        ("strict, but this port checked", Strict, Some((8080, Check)), None, 8080, End::Daemon, End::Daemon),
        (
            "strict, a probe: from a process of the node only",
            Strict,
            None,
            Some(8080),
            8080,
            End::App,
            End::Refused,
        ),
        ("strict, a probe: no other port", Strict, None, Some(8080), 9090, End::Refused, End::Refused),
        ("checked, a probe", Check, None, Some(8080), 8080, End::App, End::Daemon),
        (
            "a probe on a port with a rule",
            Open,
            Some((8080, Strict)),
            Some(8080),
            8080,
            End::App,
            End::Refused,
        ),
    ];
    for (name, default, rule, probe, port, from_node, from_stranger) in rows {
        let inbound =
            Inbound { default, ports: rule.into_iter().collect(), probe_ports: probe.into_iter().collect() };
        dataplane.set_inbound(pod.cookie, &inbound).expect("inbound rules");
        let before = counter(&dataplane, KernelReason::PlaintextRefused);
        // The address is the same: a connection that was masqueraded to it is none of the node's.
        for (who, host, end) in
            [("node", pod.outside.cookie, &from_node), ("other", NetnsCookie(1), &from_stranger)]
        {
            dataplane.set_host(host).expect("the node's namespace");
            assert_eq!(&arrivals.end(NODE_V4, at(POD_V4, port)), end, "{name}, {who}, IPv4");
            assert_eq!(&arrivals_v6.end(NODE_V6, at(POD_V6, port)), end, "{name}, {who}, IPv6");
        }
        let refusals = [&from_node, &from_stranger].iter().filter(|end| ***end == End::Refused).count();
        let counted = counter(&dataplane, KernelReason::PlaintextRefused) - before;
        assert!(
            counted >= 2 * refusals as u64,
            "{name}: {counted} refusals counted, {refusals} twice expected"
        );
        assert_eq!(counted == 0, refusals == 0, "{name}: no other refusals");
    }
}

#[test]
fn connection_of_node_is_listed_until_it_closes() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    dataplane.set_addresses(daemon.number, &[crate::lab::address(POD_V4)].into()).expect("addresses");
    let app = pod.listen_dual(8080);
    let probed = Inbound { default: InboundMode::Strict, ports: [].into(), probe_ports: [8080].into() };
    dataplane.set_inbound(pod.cookie, &probed).expect("a mode");
    dataplane.set_host(pod.outside.cookie).expect("the node's namespace");
    let from = |port| {
        let socket = pod.outside.socket(Domain::IPV4);
        socket.set_reuse_address(true).expect("address reuse");
        socket.bind(&at(NODE_V4, port).into())?;
        socket.connect_timeout(&at(POD_V4, 8080).into(), crate::lab::DEADLINE)?;
        Ok::<_, std::io::Error>(socket)
    };
    let probe = from(0).expect("a probe passes");
    let port = port(&probe);
    assert_eq!(dataplane.occupancy().expect("sizes")["PROBES"], 1);
    // Reset, so that its port is free at once.
    probe.set_linger(Some(std::time::Duration::ZERO)).expect("linger");
    drop((probe, accept(&app)));
    until("it is not listed any more", || dataplane.occupancy().expect("sizes")["PROBES"] == 0);
    dataplane.set_host(NetnsCookie(1)).expect("another namespace");
    let error = from(port).expect_err("the same address and port, of another");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn open_mode_ends_with_its_lease() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    let app = pod.listen_dual(8080);
    dataplane.set_inbound(pod.cookie, &mode(InboundMode::Open)).expect("a mode");
    let arrivals =
        Arrivals { pod: &pod, app: [&app, &app], plaintext: [&daemon.plaintext_v4, &daemon.plaintext_v6] };
    assert_eq!(arrivals.end(NODE_V4, at(POD_V4, 8080)), End::App);
    dataplane.renew_lease(Lease::OpenMode, std::time::Duration::ZERO).expect("no lease");
    assert_eq!(arrivals.end(NODE_V4, at(POD_V4, 8080)), End::Daemon, "checked");
    dataplane.set_listeners(pod.cookie, &Listeners::default()).expect("no listeners");
    assert_eq!(arrivals.end(NODE_V4, at(POD_V4, 8080)), End::Refused, "no daemon");
    dataplane.renew_lease(Lease::OpenMode, std::time::Duration::MAX).expect("for ever");
    assert_eq!(arrivals.end(NODE_V4, at(POD_V4, 8080)), End::App);
    dataplane.limit_lease(Lease::OpenMode, std::time::Duration::ZERO).expect("not any more");
    assert_eq!(arrivals.end(NODE_V4, at(POD_V4, 8080)), End::Refused);
}

#[test]
fn connections_within_the_pod_are_not_redirected() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let _daemon = pod.enrol(&dataplane);
    dataplane.set_inbound(pod.cookie, &mode(InboundMode::Strict)).expect("a mode");
    for own in [POD_V4, POD_V6, "127.0.0.1", "::1"] {
        for port in [0, HBONE_PORT] {
            let app = pod.listen_at(at(own, port));
            let client = pod.connect(local(&app)).unwrap_or_else(|error| panic!("{own}: {error}"));
            assert_eq!(accept(&app).1, local(&client), "{own}");
        }
    }
    let app = pod.listen(POD_V4);
    let client = pod.socket(Domain::IPV4);
    client.bind(&at("127.0.0.1", 0).into()).expect("bound");
    client.connect(&local(&app).into()).expect("from loopback to the pod's address");
    assert_eq!(accept(&app).1, local(&client));
}

#[test]
fn connections_are_refused_while_the_daemon_is_dead() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    let app = pod.listen_dual(8080);
    let _also = pod.listen_dual(HBONE_PORT);
    dataplane.set_inbound(pod.cookie, &mode(InboundMode::Check)).expect("a mode");
    // Closed listeners are removed from the map by the kernel: when a process that another test has just
    // started no longer holds them, too.
    drop(daemon);
    until("the dead daemon's listeners are gone", || arrive(&pod, NODE_V4, at(POD_V4, 8080)).is_err());
    let refused = |to, reason| {
        let before = counter(&dataplane, reason);
        let error = arrive(&pod, NODE_V4, to).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
        assert!(counter(&dataplane, reason) > before, "{to}: the refusal is counted");
    };
    refused(at(POD_V4, 8080), KernelReason::PlaintextListenerMissing);
    refused(at(POD_V4, HBONE_PORT), KernelReason::HboneListenerMissing);
    dataplane.set_inbound(pod.cookie, &mode(InboundMode::Strict)).expect("a mode");
    refused(at(POD_V4, 8080), KernelReason::PlaintextRefused);
    dataplane.set_inbound(pod.cookie, &mode(InboundMode::Open)).expect("a mode");
    refused(at(POD_V4, HBONE_PORT), KernelReason::HboneListenerMissing);
    let client = arrive(&pod, NODE_V4, at(POD_V4, 8080)).expect("an open port does not need the daemon");
    assert_connected("open", &client, &accept(&app).0);

    // The next daemon takes over by setting its listeners.
    dataplane.set_inbound(pod.cookie, &mode(InboundMode::Check)).expect("a mode");
    let next = pod.listen("127.0.0.1");
    let listeners = Listeners { plaintext_v4: Some(next.as_fd()), ..Listeners::default() };
    dataplane.set_listeners(pod.cookie, &listeners).expect("listeners");
    let _client = arrive(&pod, NODE_V4, at(POD_V4, 8080)).expect("accepted");
    assert_eq!(local(&accept(&next).0), at(POD_V4, 8080));
    dataplane.set_listeners(pod.cookie, &Listeners::default()).expect("no listeners");
    refused(at(POD_V4, 8080), KernelReason::PlaintextListenerMissing);
}

#[test]
fn apps_see_the_real_client() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let _daemon = pod.enrol(&dataplane);
    let (v4, v6, dual) = (pod.listen_at(at(POD_V4, 81)), pod.listen_at(at(POD_V6, 82)), pod.listen_dual(83));
    let multipath = pod.listen_multipath(at(POD_V4, 84));
    let rows = [
        ("Multipath TCP", &multipath, at(POD_V4, 84), at("192.0.2.7", 40000), at("192.0.2.7", 40000)),
        ("IPv4", &v4, at(POD_V4, 81), at("192.0.2.7", 40001), at("192.0.2.7", 40001)),
        ("IPv6", &v6, at(POD_V6, 82), at("2001:db8::7", 40002), at("2001:db8::7", 40002)),
        ("both, IPv4", &dual, at(POD_V4, 83), at("192.0.2.7", 40003), at("::ffff:192.0.2.7", 40003)),
        ("both, IPv6", &dual, at(POD_V6, 83), at("2001:db8::7", 65535), at("2001:db8::7", 65535)),
    ];
    // In any mode, and for captured addresses, too: the daemon's own connection to the app is not captured.
    dataplane.add_destination(crate::lab::address(POD_V4)).expect("a destination");
    dataplane.add_destination(crate::lab::address(POD_V6)).expect("a destination");
    dataplane.set_inbound(pod.cookie, &mode(InboundMode::Strict)).expect("a mode");
    for (name, app, to, client, shown) in rows {
        let daemon = pod.socket(Domain::for_address(to));
        dataplane.mark_inbound(daemon.as_fd(), client).expect("the mark");
        daemon.connect(&to.into()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (server, seen) = accept(app);
        assert_eq!(seen, shown, "{name}: accept()");
        assert_eq!(peer(&server), shown, "{name}: getpeername()");
        assert_eq!(peer(&daemon), to, "{name}: the daemon sees the app");
        assert_connected(name, &daemon, &server);
        assert_connected(name, &server, &daemon);
    }
    until("no hand-off remains", || dataplane.pending_handoffs().expect("hand-offs") == 0);
}

#[test]
fn handoffs_of_failed_connections_are_removed() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let _daemon = pod.enrol(&dataplane);
    let connect = |to: SocketAddr| {
        let daemon = pod.socket(Domain::IPV4);
        dataplane.mark_inbound(daemon.as_fd(), at("192.0.2.7", 1)).expect("the mark");
        daemon.connect(&to.into()).map(|()| daemon)
    };
    assert_eq!(connect(at(POD_V4, 84)).expect_err("no app").kind(), ErrorKind::ConnectionRefused);
    until("no hand-off remains", || dataplane.pending_handoffs().expect("hand-offs") == 0);

    let app = pod.listen_at(at(POD_V4, 85));
    let daemon = connect(at(POD_V4, 85)).expect("connected");
    let (server, seen) = accept(&app);
    drop(daemon);
    assert_eq!(seen, at("192.0.2.7", 1));
    // The peer's address is state of the app's socket, and stays after the daemon has closed.
    assert_eq!(peer(&server), at("192.0.2.7", 1));
}

#[test]
fn inbound_mark_is_refused_in_a_pod_that_is_not_enrolled() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let app = pod.listen(POD_V4);
    let daemon = pod.socket(Domain::IPV4);
    dataplane.mark_inbound(daemon.as_fd(), at(MESH_V4, 1)).expect("the mark");
    let error = daemon.connect(&at(POD_V4, port(&app)).into()).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(counter(&dataplane, KernelReason::PodUnknown), 1);
}
