//! Limits of maps and rings: each is filled, and what does not fit fails closed for its pod alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ambit_loader::{Inbound, InboundMode, KernelReason, RecordKind, Verdict, VerdictSweep};
use aya::maps::{HashMap, Map, MapData};
use socket2::Domain;

use crate::lab::{DEADLINE, Lab, Pod, accept, at, counter, local, until};
use crate::leaks::pins;
use crate::neighbours::{CLIENT, Neighbours, OTHER, SERVER, V4};

/// So many addresses that no host has.
fn addresses(count: u32) -> impl Iterator<Item = IpAddr> {
    (0..count).map(|index| IpAddr::from(Ipv4Addr::from(0x0b00_0000 + index)))
}

#[test]
fn unlisted_destinations_are_captured_while_the_map_is_full() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    let full = addresses(1 << 19).position(|address| !dataplane.add_destination(address).expect("a write"));
    assert_eq!(full, Some((1 << 18) - 2), "two were there");
    let fill = dataplane.fill().expect("counts").into_iter().find(|fill| fill.map == "DESTINATIONS");
    assert_eq!(fill.map(|fill| (fill.entries, fill.limit)), Some((1 << 18, 1 << 18)));
    // Outside the mesh, as far as the kernel knows; the node listens there.
    let unlisted = at("10.2.0.1", 8080);
    let server = pod.outside.listen_at(unlisted);
    let passed = pod.connect(unlisted).expect("native");
    drop((passed, accept(&server)));
    dataplane.capture_all(true).expect("a switch");
    let captured = pod.connect(unlisted).expect("captured");
    assert_eq!(daemon.captured(&dataplane, unlisted).1, Some(unlisted), "the daemon decides");
    drop(captured);
    dataplane.capture_all(false).expect("a switch");
    let passed = pod.connect(unlisted).expect("native again");
    drop((passed, accept(&server)));
    dataplane.remove_destination(addresses(1).next().expect("one")).expect("removed");
    assert!(dataplane.add_destination(unlisted.ip()).expect("a write"), "room again");
}

#[test]
fn native_connection_beyond_the_last_entry_is_to_be_closed() {
    let world = Neighbours::new();
    world.dataplane.release(world.pods[OTHER].cookie).expect("released");
    world.open(SERVER);
    let app = world.pods[SERVER].listen_at(at(V4[SERVER], 8080));
    let pin = pins(world.settings()).into_iter().find(|pin| pin.ends_with("FLOWS")).expect("pinned");
    let map = Map::HashMap(MapData::from_pin(pin).expect("the map"));
    let mut flows: HashMap<_, [u8; 36], [u8; 88]> = HashMap::try_from(map).expect("a hash map");
    let mut filled = 0_u32;
    loop {
        let mut key = [0; 36];
        key[..4].copy_from_slice(&filled.to_ne_bytes());
        if flows.insert(key, [0; 88], 0).is_err() {
            break;
        }
        filled += 1;
    }
    assert_eq!(filled, 1 << 19);
    let client = world.pods[OTHER].connect(local(&app)).expect("its SYN came while there was room");
    let (server, from) = accept(&app);
    let record = world.record(RecordKind::Untracked, from);
    assert!(record.server_cookie.is_some(), "the daemon can close it");
    assert_eq!(counter(&world.dataplane, KernelReason::FlowsExhausted), 1);
    drop((client, server));
}

#[test]
fn one_source_caches_half_of_the_verdicts_and_others_the_rest() {
    let world = Neighbours::new();
    let verdict = |source, address| {
        let to = SocketAddr::new(address, 80);
        Verdict { ..world.verdict(source, SERVER, to) }
    };
    let generation = verdict(CLIENT, V4[SERVER].parse().expect("an address"));
    let add = |source: usize, count: u32| {
        let source = world.number(source);
        addresses(count)
            .filter(|address| {
                let address = SocketAddr::new(*address, 80);
                world.dataplane.add_verdict(&Verdict { source, address, ..generation }).expect("a write")
            })
            .count()
    };
    assert_eq!(add(CLIENT, 1 << 18), 1 << 17, "half");
    assert_eq!(add(OTHER, 1_000), 1_000, "another source has room");
    assert_eq!(add(CLIENT, 10), 10, "what is cached is renewed");
    world.dataplane.advance_generation(world.number(SERVER)).expect("advanced");
    let mut sweep = VerdictSweep::default();
    let mut steps = 1;
    while !world.dataplane.sweep_verdicts(&mut sweep).expect("a step") {
        steps += 1;
    }
    assert!(steps > 50, "{steps} steps");
    assert_eq!(world.entries("VERDICTS"), 0);
    assert_eq!(add(CLIENT, 10), 10, "room again");
}

#[test]
fn flood_of_refusals_leaves_a_few_records_and_is_counted_whole() {
    const CONNECTIONS: u64 = 2_000;
    let world = Neighbours::new();
    let closed = at(V4[SERVER], 9999);
    world.dataplane.release(world.pods[OTHER].cookie).expect("released");
    world.remaining_records();
    for _ in 0..CONNECTIONS {
        world.pods[OTHER].connect(closed).expect_err("refused");
    }
    let seen = world.remaining_records();
    let refused: Vec<_> = seen.iter().filter(|record| record.kind == RecordKind::Refused).collect();
    let last = refused.last().expect("some").from_client;
    assert!(refused.len() as u64 <= CONNECTIONS, "{} records", refused.len());
    assert!((refused.len() as u64..=CONNECTIONS + 10).contains(&last), "{last} counted");
    assert!(counter(&world.dataplane, KernelReason::PlaintextRefused) >= CONNECTIONS);
    assert_eq!(counter(&world.dataplane, KernelReason::RecordLost), 0);
}

#[test]
fn pod_with_a_rule_for_every_port_leaves_others_their_share() {
    let world = Neighbours::new();
    let all = (0..=u16::MAX).map(|port| (port, InboundMode::Open)).collect();
    let greedy = Inbound { default: InboundMode::Strict, ports: all, probe_ports: [].into() };
    let (other, server) = (&world.pods[OTHER], &world.pods[SERVER]);
    world.dataplane.set_inbound(other.cookie, &greedy).expect_err("only half of them");
    world.dataplane.release(world.pods[CLIENT].cookie).expect("released");
    let beyond = other.listen_at(at(V4[OTHER], 65_000));
    let client = world.pods[CLIENT].connect(local(&beyond)).expect("accepted by the daemon");
    drop((client, accept(&world.daemons[OTHER].plaintext_v4)));
    let next = Inbound {
        default: InboundMode::Open,
        ports: [(8080, InboundMode::Strict)].into(),
        probe_ports: [].into(),
    };
    let app = server.listen_at(at(V4[SERVER], 8080));
    world.dataplane.set_inbound(server.cookie, &next).expect("its share");
    world.pods[CLIENT].connect(local(&app)).expect_err("refused by the kernel");
}

#[test]
fn device_bound_client_is_captured_or_refused_with_the_reason() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    for destination in [at(crate::lab::MESH_V4, 80), at(crate::lab::MESH_V6, 80)] {
        let bound = || {
            let socket = pod.socket(Domain::for_address(destination));
            socket.bind_device(Some(b"eth0")).expect("bound to a device");
            socket
        };
        let privileged = bound();
        privileged.connect_timeout(&destination.into(), DEADLINE).expect("captured");
        assert_eq!(daemon.captured(&dataplane, destination).1, Some(destination), "with CAP_NET_RAW");
        let before = counter(&dataplane, KernelReason::DeviceBound);
        let unprivileged = bound();
        let error = pod.run(|| {
            give_up_capabilities();
            unprivileged.connect(&destination.into()).expect_err("refused")
        });
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "without CAP_NET_RAW");
        until("it is counted", || counter(&dataplane, KernelReason::DeviceBound) == before + 1);
    }
}

/// Makes the calling thread, and no other, one of a user without any capability.
#[expect(unsafe_code, reason = "the C library's function changes all threads")]
fn give_up_capabilities() {
    const NOBODY: libc::c_long = 65_534;
    // SAFETY: takes numbers.
    let changed = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
}
