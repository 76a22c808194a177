//! The kernel's choice of endpoints: shares, affinity, and that the daemon learns of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use ambit_loader::{RecordKind, Table};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{accept, at, local, peer};
use crate::neighbours::{CLIENT, Neighbours, OTHER, SERVER, SERVICE_V4, SERVICE_V6, V4, V6};
use crate::outbound::assert_joined;
use crate::unusual::set_option;

#[test]
fn services_are_reached_directly() {
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
        let (asked, endpoint) = (at(service, 80), at(endpoint, 8080));
        let canonical = SocketAddr::new(asked.ip().to_canonical(), 80);
        world.dataplane.set_service(canonical, &Table::Weighted(vec![(endpoint, 1)])).expect("a table");
        world.allow(CLIENT, SERVER, endpoint);
        let client = world.pods[CLIENT].connect(asked).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(peer(&client), asked, "{name}: whom it asked for");
        if direct {
            let (server, _) = accept(&app);
            let flows = world.flows();
            assert_eq!((flows[0].server, flows[0].asked), (endpoint, Some(canonical)), "{name}");
            assert_joined(name, &client, &server);
        } else {
            let (server, asked) = world.daemons[CLIENT].captured(&world.dataplane, asked);
            assert_eq!(asked, Some(canonical), "{name}");
            assert_joined(name, &client, &server);
        }
        drop(client);
        world.until_none_is_listed();
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
fn the_daemon_learns_the_choice() {
    let world = Neighbours::new();
    let asked = at(SERVICE_V4, 80);
    let endpoint = at(V4[SERVER], 8080);
    let chosen = || {
        let client = world.pods[CLIENT].connect(asked).expect("captured");
        let (server, _) = accept(world.daemons[CLIENT].outbound(asked));
        let captured = world.dataplane.original_destination(server.as_fd()).expect("the socket's storage");
        drop(client);
        let captured = captured.expect("captured");
        assert_eq!(captured.asked, asked);
        captured.chosen
    };
    let set = |table: Table| world.dataplane.set_service(asked, &table).expect("a table");
    assert_eq!(chosen(), None, "no service");
    set(Table::Weighted(vec![(endpoint, 1)]));
    assert_eq!(chosen(), Some(endpoint), "without a verdict: the daemon carries it there");
    set(Table::Weighted(vec![]));
    assert_eq!(chosen(), None, "an empty table");
    set(Table::Weighted(vec![(endpoint, 0)]));
    assert_eq!(chosen(), None, "a table without weight");
    set(Table::Affinity);
    assert_eq!(chosen(), None, "affinity, and the client has none yet");
    world.dataplane.stick(world.number(OTHER), asked, at(V4[OTHER], 1)).expect("stuck");
    assert_eq!(chosen(), None, "another client's");
    world.dataplane.stick(world.number(CLIENT), asked, endpoint).expect("stuck");
    assert_eq!(chosen(), Some(endpoint), "affinity");

    let app = world.pods[SERVER].listen_at(endpoint);
    world.allow(CLIENT, SERVER, endpoint);
    for _ in 0..20 {
        let client = world.pods[CLIENT].connect(asked).expect("direct");
        assert_eq!(accept(&app).1, local(&client), "the same each time");
    }
    world.dataplane.unstick(asked).expect("forgotten");
    assert_eq!(chosen(), None, "after it was forgotten");
    world.dataplane.stick(world.number(CLIENT), asked, endpoint).expect("stuck");
    world.dataplane.release(world.pods[CLIENT].cookie).expect("released");
    assert_eq!(world.held("STICKY"), 0, "nothing of a released pod is kept");
}

#[test]
fn endpoints_get_their_shares() {
    const DRAWS: u32 = 4000;
    let world = Neighbours::new();
    let asked = at(SERVICE_V4, 80);
    // Of chi-square with so many degrees of freedom, exceeded by chance once in a million times.
    let rows: [(&str, &[u32], f64); 4] = [
        ("equal", &[1, 1, 1], 27.63),
        ("one to three", &[1, 3], 23.93),
        ("weights of many sizes", &[1, 2, 10, 50, 137], 33.38),
        ("one without weight", &[3, 0, 7], 23.93),
    ];
    for (name, weights, limit) in rows {
        let endpoints: Vec<(SocketAddr, u32)> =
            (9000..).zip(weights).map(|(port, weight)| (at(V4[SERVER], port), *weight)).collect();
        world.dataplane.set_service(asked, &Table::Weighted(endpoints.clone())).expect("a table");
        let mut counts: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        for _ in 0..DRAWS {
            let client = world.pods[CLIENT].socket(Domain::IPV4);
            client.connect(&asked.into()).expect("captured");
            let (server, _) = accept(world.daemons[CLIENT].outbound(asked));
            let captured = world.dataplane.original_destination(server.as_fd()).expect("the storage");
            let chosen = captured.and_then(|captured| captured.chosen).expect("a choice");
            *counts.entry(chosen).or_default() += 1;
        }
        let sum: u32 = weights.iter().sum();
        let mut statistic = 0.0;
        for (endpoint, weight) in &endpoints {
            let count = counts.remove(endpoint).unwrap_or(0);
            if *weight == 0 {
                assert_eq!(count, 0, "{name}: without weight");
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
    for asked in [to, service] {
        let client = world.pods[CLIENT].run(|| {
            Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).expect("a multipath socket")
        });
        client.connect(&asked.into()).expect("captured");
        let (server, found) = world.daemons[CLIENT].captured(&world.dataplane, asked);
        assert_eq!(found, Some(asked));
        assert_eq!(peer(&client), asked);
        assert_joined("multipath", &client, &server);
    }
    // A server may listen for it all the same: what comes directly is plain TCP.
    let app = world.pods[SERVER].listen_multipath(to);
    let client = world.pods[CLIENT].connect(to).expect("direct");
    let (server, from) = accept(&app);
    assert_joined("a multipath listener", &client, &server);
    drop((client, server));
    let closed = world.record(RecordKind::Closed, from);
    assert_eq!((closed.from_client, closed.from_server), (4, 0));
    world.until_none_is_listed();
}

#[test]
fn fast_open_is_direct_and_counted() {
    let world = Neighbours::new();
    for pod in [CLIENT, SERVER] {
        world.pods[pod].run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").expect("fast open"));
    }
    let app = world.pods[SERVER].listen(V4[SERVER]);
    set_option(&app, libc::TCP_FASTOPEN, 16).expect("fast open");
    let to = local(&app);
    world.allow(CLIENT, SERVER, to);
    // The first connection fetches a cookie, the second sends its data with the SYN.
    for round in ["asks for a cookie", "has one", "has one still"] {
        let client = world.pods[CLIENT].socket(Domain::IPV4);
        crate::unusual::send_fast_open(&client, b"fast", &to.into()).expect("sent");
        let (mut server, from) = accept(&app);
        let mut data = [0; 4];
        std::io::Read::read_exact(&mut server, &mut data).expect("reading");
        assert_eq!(&data, b"fast", "{round}");
        assert_joined(round, &server, &client);
        assert_eq!(world.flows()[0].server_cookie, server.cookie().ok(), "{round}");
        drop((client, server));
        let closed = world.record(RecordKind::Closed, from);
        assert_eq!((closed.from_client, closed.from_server), (4, 4), "{round}");
        world.until_none_is_listed();
    }
}
