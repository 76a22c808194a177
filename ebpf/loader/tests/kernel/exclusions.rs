//! Destination ports that a pod excludes from capture.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ambit_loader::{Dataplane, Inbound, InboundMode};

use crate::lab::{Lab, NODE_V4, NODE_V6, Pod, accept, address, assert_connected, at, local, peer};
use crate::neighbours::{CLIENT, Neighbours, SERVER, V4, V6};

fn exclude(dataplane: &Dataplane, pod: &Pod, ports: &[u16]) {
    let open = Inbound { default: InboundMode::Open, ports: [].into(), probe_ports: [].into() };
    dataplane.set_ports(pod.cookie, &open, &ports.iter().copied().collect()).expect("exclusions");
}

#[test]
fn connections_to_excluded_ports_are_not_captured() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let (pod, other) = (Pod::new(), Pod::new());
    let (daemon, others) = (pod.enrol(&dataplane), other.enrol(&dataplane));
    for node in [NODE_V4, NODE_V6] {
        dataplane.add_destination(address(node)).expect("a destination");
    }
    let mapped = format!("::ffff:{NODE_V4}");
    for (name, to, node) in
        [("IPv4", NODE_V4, NODE_V4), ("IPv6", NODE_V6, NODE_V6), ("v4-mapped", mapped.as_str(), NODE_V4)]
    {
        let listener = pod.outside.listen_at(at(node, 3306));
        let captured = |to: SocketAddr, what: &str| {
            let client = pod.connect(to).unwrap_or_else(|error| panic!("{name}, {what}: {error}"));
            let (server, found) = daemon.captured(&dataplane, to);
            assert_eq!(found, Some(SocketAddr::new(to.ip().to_canonical(), to.port())), "{name}, {what}");
            assert_connected(name, &client, &server);
        };
        captured(at(to, 3306), "no exclusions");
        exclude(&dataplane, &pod, &[3306, 25]);
        let client = pod.connect(at(to, 3306)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (server, seen) = accept(&listener);
        assert_eq!(
            seen,
            SocketAddr::new(local(&client).ip().to_canonical(), local(&client).port()),
            "{name}"
        );
        assert_eq!(peer(&client), at(to, 3306), "{name}");
        assert_connected(name, &client, &server);
        captured(at(to, 3307), "another port");

        let foreign = other.connect(at(to, 3306)).expect("captured");
        let (server, _) = others.captured(&dataplane, at(to, 3306));
        assert_connected(name, &foreign, &server);

        exclude(&dataplane, &pod, &[25]);
        captured(at(to, 3306), "another port is excluded");
        exclude(&dataplane, &pod, &[]);
        captured(at(to, 3306), "exclusions removed");
        assert_eq!(dataplane.occupancy().expect("maps")["PORTS"], 0, "{name}: no rule is left");
    }
}

#[test]
fn exclusions_outlive_the_daemon_and_end_with_the_pod() {
    let mut lab = Lab::new();
    let settings = lab.settings();
    let dataplane = Dataplane::open(&settings).expect("the instance opens");
    dataplane.add_destination(address(NODE_V4)).expect("a destination");
    let pod = Pod::new();
    let listener = pod.outside.listen_at(at(NODE_V4, 3306));
    let daemon = pod.enrol(&dataplane);
    exclude(&dataplane, &pod, &[3306]);
    drop((daemon, dataplane));
    let straight = |name: &str| {
        let client = pod.connect(at(NODE_V4, 3306)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(accept(&listener).1, local(&client), "{name}");
    };
    straight("no daemon");
    let next = Dataplane::open(&settings).expect("the instance opens again");
    let daemon = pod.enrol(&next);
    straight("the next daemon, before it sets ports");
    exclude(&next, &pod, &[]);
    let _client = pod.connect(at(NODE_V4, 3306)).expect("captured");
    assert_eq!(
        daemon.captured(&next, at(NODE_V4, 3306)).1,
        Some(at(NODE_V4, 3306)),
        "the next daemon knows the rule"
    );
    exclude(&next, &pod, &[3306, 25]);
    next.release(pod.cookie).expect("released");
    assert_eq!(next.occupancy().expect("maps")["PORTS"], 0, "no rule is left");
}

#[test]
fn exclusions_do_not_change_the_destinations_policy() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen_dual(8080);
    let strict = Inbound { default: InboundMode::Strict, ports: [].into(), probe_ports: [].into() };
    let set = |pod: usize, ports: BTreeSet<u16>| {
        world.dataplane.set_ports(world.pods[pod].cookie, &strict, &ports).expect("exclusions");
    };
    set(SERVER, [8080].into());
    set(CLIENT, [8080].into());
    for to in [at(V4[SERVER], 8080), at(V6[SERVER], 8080)] {
        let error = world.pods[CLIENT].connect(to).expect_err("the destination is strict");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}");
        // A cached verdict does not make it a mesh connection.
        world.allow(CLIENT, SERVER, to);
        world.pods[CLIENT].connect(to).expect_err("an excluded port takes no direct path");
        set(CLIENT, [].into());
        let client = world.pods[CLIENT].connect(to).expect("direct");
        let (server, _) = accept(&app);
        assert_connected("direct", &client, &server);
        set(CLIENT, [8080].into());
    }
}
