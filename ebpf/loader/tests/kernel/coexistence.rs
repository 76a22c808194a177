//! Programs of others on the connect hooks, before and after ours: service load balancers, programs that
//! refuse, and programs that change the decided destination. Needs a kernel that orders programs (Linux
//! 6.17).

use std::fs::File;
use std::io::ErrorKind;
use std::net::SocketAddr;

use ambit_loader::{Dataplane, Error, KernelReason, Path, RecordKind, Settings, Table};
use socket2::{Domain, Socket};

use crate::foreign::{self, Does, Foreign, Hook, Order};
use crate::lab::{
    Lab, MESH_V4, MESH_V6, Pod, STRANGER_V4, STRANGER_V6, accept, assert_connected, at, counter, local, peer,
    port,
};
use crate::neighbours::{CLIENT, Neighbours, OTHER, SERVER, SERVICE_V4, SERVICE_V6, V4, V6};

/// Services of the load balancer that the mesh does not know.
const STRANGE_V4: &str = "10.97.0.10";
const STRANGE_V6: &str = "fd00:97::10";

/// A load balancer in the client's namespace: it translates `service` to `endpoint`, and back in
/// `getpeername()`.
fn balancer(world: &Neighbours, service: SocketAddr, endpoint: SocketAddr, order: Order) -> [Foreign; 2] {
    let attach = |hook, does| {
        Foreign::attach(world.pods[CLIENT].cookie, hook, does, order).expect("the program is attached")
    };
    [
        attach(Hook::Connect, Does::Replace(service, endpoint)),
        attach(Hook::GetPeerName, Does::Replace(endpoint, service)),
    ]
}

/// The error of a connection that must fail.
fn failure(result: std::io::Result<Socket>, name: &str) -> ErrorKind {
    match result {
        Ok(socket) => panic!("{name}: connected to {}", peer(&socket)),
        Err(error) => error.kind(),
    }
}

#[test]
fn services_known_to_both_are_captured_in_either_order() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen_dual(8080);
    for order in Order::BOTH {
        for (service, endpoint) in [(SERVICE_V4, V4[SERVER]), (SERVICE_V6, V6[SERVER])] {
            let (service, endpoint) = (at(service, 80), at(endpoint, 8080));
            let name = format!("theirs {order:?} ours, {service}");
            let theirs = balancer(&world, service, endpoint, order);
            // The first program decides. Ours sees their endpoint, or they see an address that is not theirs.
            let original = if order == Order::Before { endpoint } else { service };

            let client =
                world.pods[CLIENT].connect(service).unwrap_or_else(|error| panic!("{name}: {error}"));
            let (server, found) = world.daemons[CLIENT].captured(&world.dataplane, service);
            assert_eq!(found, Some(original), "{name}: tunnelled");
            assert_eq!(peer(&client), original, "{name}: the peer's address");
            assert_connected(&name, &client, &server);
            drop((client, server));

            world.dataplane.set_service(service, &Table::Weighted(vec![(endpoint, 1)])).expect("a table");
            world.allow(CLIENT, SERVER, endpoint);
            let client =
                world.pods[CLIENT].connect(service).unwrap_or_else(|error| panic!("{name}: {error}"));
            let (server, seen) = accept(&app);
            assert_eq!(seen.ip().to_canonical(), local(&client).ip(), "{name}: directly");
            assert_eq!(world.flows()[0].original_destination, Some(original), "{name}");
            assert_eq!(peer(&client), original, "{name}: the peer's address");
            assert_connected(&name, &client, &server);
            drop((client, server, theirs));
            world.until_no_flow_is_tracked();
            world.dataplane.advance_generation(world.number(SERVER)).expect("verdicts are invalidated");
            world.dataplane.remove_service(service).expect("removed");
        }
    }
    assert_eq!(world.dataplane.pending_handoffs().expect("hand-offs"), 0);
}

#[test]
fn our_programs_run_before_existing_ones() {
    let mut lab = Lab::new();
    let pod = Pod::new();
    let (v4, v6) = (at(MESH_V4, 80), at(MESH_V6, 80));
    let theirs = [(v4, at(STRANGER_V4, 80)), (v6, at(STRANGER_V6, 80))].map(|(from, to)| {
        Foreign::attach(pod.cookie, Hook::Connect, Does::Replace(from, to), Order::After).expect("attached")
    });
    let dataplane = lab.dataplane();
    let daemon = pod.enrol(&dataplane);
    for mesh in [v4, v6] {
        let client = pod.connect(mesh).expect("captured");
        assert_eq!(daemon.captured(&dataplane, mesh).1, Some(mesh), "the original destination");
        assert_eq!(peer(&client), mesh);
    }
    drop(theirs);
}

#[test]
fn services_known_only_to_them_meet_the_destinations_policy() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen_dual(8080);
    for (service, endpoint) in [(STRANGE_V4, V4[SERVER]), (STRANGE_V6, V6[SERVER])] {
        let (service, endpoint) = (at(service, 80), at(endpoint, 8080));
        let theirs = balancer(&world, service, endpoint, Order::Before);
        let client = world.pods[CLIENT].connect(service).expect("captured");
        let (_server, found) = world.daemons[CLIENT].captured(&world.dataplane, service);
        assert_eq!(found, Some(endpoint), "{service}: theirs first, captured by the pod's address");
        drop((client, theirs));

        let theirs = balancer(&world, service, endpoint, Order::After);
        let before = counter(&world.dataplane, KernelReason::PlaintextRefused);
        let refused = failure(world.pods[CLIENT].connect(service), "ours first, strict pod");
        assert_eq!(refused, ErrorKind::ConnectionRefused, "{service}");
        let after = counter(&world.dataplane, KernelReason::PlaintextRefused);
        assert!(after > before, "{service}: refused at the destination");
        drop(theirs);
    }
    world.remaining_records();
    // Where plaintext is permitted, the connection is native and recorded as such.
    world.open(SERVER);
    let (service, endpoint) = (at(STRANGE_V4, 80), at(V4[SERVER], 8080));
    let _theirs = balancer(&world, service, endpoint, Order::After);
    let client = world.pods[CLIENT].connect(service).expect("connected");
    let (server, _) = accept(&app);
    assert_connected("plaintext", &client, &server);
    assert_eq!(peer(&client), service, "their translation is kept");
    assert_eq!(world.record(RecordKind::Opened, local(&client)).path, Path::Native);
}

#[test]
fn destinations_changed_after_our_decision_meet_the_destinations_policy() {
    let world = Neighbours::new();
    let [app, unwanted] = [8080, 9090].map(|port| world.pods[SERVER].listen_dual(port));
    let other = world.pods[OTHER].listen_dual(8080);
    for (v6, addresses) in [(false, V4), (true, V6)] {
        let to = at(addresses[SERVER], 8080);
        let listener = world.daemons[CLIENT].outbound(to);
        let loopback = at(if v6 { "::1" } else { "127.0.0.1" }, port(listener));
        let rows = [
            ("captured, then redirected to the pod in plaintext", false, loopback, to),
            ("direct, then redirected to another pod", true, to, at(addresses[OTHER], 8080)),
            ("direct, then redirected to another port of the pod", true, to, at(addresses[SERVER], 9090)),
        ];
        for (name, direct, from, elsewhere) in rows {
            let name = format!("{name}, {to}");
            if direct {
                world.allow(CLIENT, SERVER, to);
            }
            let theirs = Does::Replace(from, elsewhere);
            let theirs = Foreign::attach(world.pods[CLIENT].cookie, Hook::Connect, theirs, Order::After)
                .expect("attached");
            let before = counter(&world.dataplane, KernelReason::PlaintextRefused);
            assert_eq!(
                failure(world.pods[CLIENT].connect(to), &name),
                ErrorKind::ConnectionRefused,
                "{name}"
            );
            let after = counter(&world.dataplane, KernelReason::PlaintextRefused);
            assert!(after > before, "{name}: refused at the destination");
            drop(theirs);
            assert_eq!(world.flows(), [], "{name}: no flow is tracked");
            assert_eq!(world.dataplane.pending_handoffs().expect("hand-offs"), 0, "{name}");
            if direct {
                let client = world.pods[CLIENT].connect(to).expect("connects without their program");
                let (server, _) = accept(&app);
                assert_connected(&name, &client, &server);
                drop((client, server));
                world.until_no_flow_is_tracked();
                world.dataplane.advance_generation(world.number(SERVER)).expect("verdicts are invalidated");
            }
        }
    }
    assert_eq!(
        counter(&world.dataplane, KernelReason::FlowMisdirected),
        4,
        "the destination differs from the decision"
    );
    for listener in [&app, &unwanted, &other] {
        listener.set_nonblocking(true).expect("non-blocking");
        let waiting = listener.accept().expect_err("no app got a connection").kind();
        assert_eq!(waiting, ErrorKind::WouldBlock);
    }
}

#[test]
fn programs_that_refuse_are_respected() {
    let world = Neighbours::new();
    for order in Order::BOTH {
        for service in [at(SERVICE_V4, 80), at(SERVICE_V6, 80)] {
            let name = format!("theirs {order:?} ours, {service}");
            let cookie = world.pods[CLIENT].cookie;
            // Our program has run first and changed the address: theirs sees the changed one.
            let listener = world.daemons[CLIENT].outbound(service);
            let loopback = at(if service.is_ipv4() { "127.0.0.1" } else { "::1" }, port(listener));
            let seen = if order == Order::Before { service } else { loopback };
            let theirs = Foreign::attach(cookie, Hook::Connect, Does::Refuse(seen), order).expect("attached");
            let socket = world.pods[CLIENT].socket(Domain::for_address(service));
            let error = socket.connect(&service.into()).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{name}");
            assert!(socket.peer_addr().is_err(), "{name}: not connected");
            assert_eq!(world.dataplane.pending_handoffs().expect("hand-offs"), 0, "{name}");
            drop(theirs);
            socket.connect(&service.into()).unwrap_or_else(|error| panic!("{name}, same socket: {error}"));
            let (server, found) = world.daemons[CLIENT].captured(&world.dataplane, service);
            assert_eq!(found, Some(service), "{name}");
            assert_connected(&name, &socket, &server);
        }
    }
}

#[test]
fn exclusive_programs_make_attaching_fail() {
    let mut lab = Lab::new();
    let name = format!("ambit-alone-{}", std::process::id());
    let cgroup = foreign::cgroup().expect("cgroup v2").join(name);
    std::fs::create_dir(&cgroup).expect("an empty cgroup");
    let alone = File::open(&cgroup).expect("its directory");
    foreign::attach_alone(&alone, at(SERVICE_V6, 80)).expect("attached");
    let settings = Settings { cgroup: Some(cgroup.clone()), ..lab.settings() };
    let opened = Dataplane::open(&settings);
    assert!(matches!(opened, Err(Error::Attach { program: "connect6", .. })), "{opened:?}");
    std::fs::remove_dir(&cgroup).expect("removed");
}

#[test]
fn place_before_programs_of_others_is_kept() {
    let world = Neighbours::new();
    let _app = world.pods[SERVER].listen_dual(8080);
    let service = at(SERVICE_V4, 80);
    let _theirs = balancer(&world, service, at(V4[SERVER], 8080), Order::Before);
    let look = world.dataplane.put_right(&[]);
    assert!(look.errors.is_empty(), "{:?}", look.errors);
    let found = look.found;
    assert!(
        found.iter().any(|it| it.object.starts_with("connect4-") && it.found == "another program before it"),
        "{found:?}"
    );
    let _client = world.pods[CLIENT].connect(service).expect("captured");
    let (_, original) = world.daemons[CLIENT].captured(&world.dataplane, service);
    assert_eq!(original, Some(service), "ours decides, not theirs");
}
