//! The kernel's choice of endpoints: weights, session affinity, and reading the choice in the daemon.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use ambit_loader::{RecordKind, Table};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{accept, assert_connected, at, local, peer};
use crate::neighbours::{CLIENT, Neighbours, OTHER, SERVER, SERVICE_V4, SERVICE_V6, V4, V6};
use crate::system::set_option;

#[test]
fn service_connections_take_the_direct_path() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen_dual(8080);
    let mapped = format!("::ffff:{SERVICE_V4}");
    let rows = [
        ("IPv4", SERVICE_V4, V4[SERVER], true),
        ("IPv6", SERVICE_V6, V6[SERVER], true),
        ("v4-mapped", mapped.as_str(), V4[SERVER], true),
        ("an endpoint of another family", SERVICE_V4, V6[SERVER], false),
        ("an endpoint of another family, the other way", SERVICE_V6, V4[SERVER], false),
    ];
    for (name, service, endpoint, direct) in rows {
        let (original, endpoint) = (at(service, 80), at(endpoint, 8080));
        let canonical = SocketAddr::new(original.ip().to_canonical(), 80);
        world.dataplane.set_service(canonical, &Table::Weighted(vec![(endpoint, 1)])).expect("a table");
        world.allow(CLIENT, SERVER, endpoint);
        let client = world.pods[CLIENT].connect(original).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(peer(&client), original, "{name}: the peer is the service");
        if direct {
            let (server, _) = accept(&app);
            let flows = world.flows();
            assert_eq!(
                (flows[0].server, flows[0].original_destination),
                (endpoint, Some(canonical)),
                "{name}"
            );
            assert_connected(name, &client, &server);
        } else {
            let (server, original) = world.daemons[CLIENT].captured(&world.dataplane, original);
            assert_eq!(original, Some(canonical), "{name}");
            assert_connected(name, &client, &server);
        }
        drop(client);
        world.until_no_flow_is_tracked();
    }
    let services = world.dataplane.services().expect("services");
    assert_eq!(services, [at(SERVICE_V4, 80), at(SERVICE_V6, 80)].into());
    for service in services {
        world.dataplane.remove_service(service).expect("removed");
        world.dataplane.remove_service(service).expect("again: no error");
    }
    assert_eq!(world.dataplane.services().expect("services"), [].into());
}

#[test]
fn daemon_reads_the_chosen_endpoint() {
    let world = Neighbours::new();
    let original = at(SERVICE_V4, 80);
    let endpoint = at(V4[SERVER], 8080);
    let chosen = || {
        let client = world.pods[CLIENT].connect(original).expect("captured");
        let (server, _) = accept(world.daemons[CLIENT].outbound(original));
        let captured = world.dataplane.original_destination(server.as_fd()).expect("the socket's storage");
        drop(client);
        let captured = captured.expect("captured");
        assert_eq!(captured.original_destination, original);
        captured.chosen
    };
    let set = |table: Table| world.dataplane.set_service(original, &table).expect("a table");
    assert_eq!(chosen(), None, "no service");
    set(Table::Weighted(vec![(endpoint, 1)]));
    assert_eq!(chosen(), Some(endpoint), "without a verdict");
    set(Table::Weighted(vec![]));
    assert_eq!(chosen(), None, "an empty table");
    set(Table::Weighted(vec![(endpoint, 0)]));
    assert_eq!(chosen(), None, "a table with weights of 0");
    set(Table::Affinity);
    assert_eq!(chosen(), None, "affinity, without an endpoint of the client");
    world.dataplane.set_affinity(world.number(OTHER), original, at(V4[OTHER], 1)).expect("set");
    assert_eq!(chosen(), None, "an endpoint of another client");
    world.dataplane.set_affinity(world.number(CLIENT), original, endpoint).expect("set");
    assert_eq!(chosen(), Some(endpoint), "affinity");

    let app = world.pods[SERVER].listen_at(endpoint);
    world.allow(CLIENT, SERVER, endpoint);
    for _ in 0..20 {
        let client = world.pods[CLIENT].connect(original).expect("direct");
        assert_eq!(accept(&app).1, local(&client), "the same endpoint each time");
    }
    world.dataplane.clear_affinity(original).expect("cleared");
    assert_eq!(chosen(), None, "after it was cleared");
    world.dataplane.set_affinity(world.number(CLIENT), original, endpoint).expect("set");
    world.dataplane.release(world.pods[CLIENT].cookie).expect("released");
    assert_eq!(world.entries("STICKY"), 0, "entries of a released pod are removed");
}

#[test]
fn endpoints_get_shares_by_weight() {
    const DRAWS: u32 = 4000;
    let world = Neighbours::new();
    let original = at(SERVICE_V4, 80);
    // The chi-square statistic exceeds these limits by chance once in a million runs.
    let rows: [(&str, &[u32], f64); 4] = [
        ("equal", &[1, 1, 1], 27.63),
        ("one to three", &[1, 3], 23.93),
        ("weights of many sizes", &[1, 2, 10, 50, 137], 33.38),
        ("one of weight 0", &[3, 0, 7], 23.93),
    ];
    for (name, weights, limit) in rows {
        let endpoints: Vec<(SocketAddr, u32)> =
            (9000..).zip(weights).map(|(port, weight)| (at(V4[SERVER], port), *weight)).collect();
        world.dataplane.set_service(original, &Table::Weighted(endpoints.clone())).expect("a table");
        let mut counts: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        for _ in 0..DRAWS {
            let client = world.pods[CLIENT].socket(Domain::IPV4);
            client.connect(&original.into()).expect("captured");
            let (server, _) = accept(world.daemons[CLIENT].outbound(original));
            let captured = world.dataplane.original_destination(server.as_fd()).expect("the storage");
            let chosen = captured.and_then(|captured| captured.chosen).expect("a choice");
            *counts.entry(chosen).or_default() += 1;
        }
        let sum: u32 = weights.iter().sum();
        let mut statistic = 0.0;
        for (endpoint, weight) in &endpoints {
            let count = counts.remove(endpoint).unwrap_or(0);
            if *weight == 0 {
                assert_eq!(count, 0, "{name}: weight 0");
                continue;
            }
            let expected = f64::from(DRAWS) * f64::from(*weight) / f64::from(sum);
            statistic += (f64::from(count) - expected).powi(2) / expected;
        }
        assert_eq!(counts, BTreeMap::new(), "{name}: no other endpoint");
        assert!(statistic < limit, "{name}: chi-square is {statistic}");
    }
}

#[test]
fn multipath_clients_take_the_tunnel() {
    let world = Neighbours::new();
    let (to, service) = (at(V4[SERVER], 8080), at(SERVICE_V4, 80));
    world.dataplane.set_service(service, &Table::Weighted(vec![(to, 1)])).expect("a table");
    world.allow(CLIENT, SERVER, to);
    for original in [to, service] {
        let client = world.pods[CLIENT].run(|| {
            Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).expect("a multipath socket")
        });
        client.connect(&original.into()).expect("captured");
        let (server, found) = world.daemons[CLIENT].captured(&world.dataplane, original);
        assert_eq!(found, Some(original));
        assert_eq!(peer(&client), original);
        assert_connected("multipath", &client, &server);
    }
    // An MPTCP listener accepts direct connections, which are plain TCP.
    let app = world.pods[SERVER].listen_multipath(to);
    let client = world.pods[CLIENT].connect(to).expect("direct");
    let (server, from) = accept(&app);
    assert_connected("a multipath listener", &client, &server);
    drop((client, server));
    let closed = world.record(RecordKind::Closed, from);
    assert_eq!((closed.from_client, closed.from_server), (4, 0));
    world.until_no_flow_is_tracked();
}

#[test]
fn fast_open_connections_are_direct_and_counted() {
    let world = Neighbours::new();
    for pod in [CLIENT, SERVER] {
        world.pods[pod].run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").expect("fast open"));
    }
    let app = world.pods[SERVER].listen(V4[SERVER]);
    set_option(&app, libc::TCP_FASTOPEN, 16).expect("fast open");
    let to = local(&app);
    world.allow(CLIENT, SERVER, to);
    // The first connection gets a cookie, the others send data with the SYN.
    for round in ["requests a cookie", "has a cookie", "still has a cookie"] {
        let client = world.pods[CLIENT].socket(Domain::IPV4);
        crate::system::send_fast_open(&client, b"fast", &to.into()).expect("sent");
        let (mut server, from) = accept(&app);
        let mut data = [0; 4];
        std::io::Read::read_exact(&mut server, &mut data).expect("reading");
        assert_eq!(&data, b"fast", "{round}");
        assert_connected(round, &server, &client);
        assert_eq!(world.flows()[0].server_cookie, server.cookie().ok(), "{round}");
        drop((client, server));
        let closed = world.record(RecordKind::Closed, from);
        assert_eq!((closed.from_client, closed.from_server), (4, 4), "{round}");
        world.until_no_flow_is_tracked();
    }
}
