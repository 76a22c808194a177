//! Direct connections between shared links: the programs at the node's ends carry them.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;
use std::time::Duration;

use ambit_loader::{KernelReason, LinkKind, Look, PodLink};
use nix::net::if_::if_nametoindex;

use crate::lab::{accept, assert_connected, at, counter, until};
use crate::leaks::folder;
use crate::neighbours::{CLIENT, Neighbours, OTHER, SERVER, V4, V6};
use crate::upkeep::bpftool;

/// As the daemon finds a pod's link.
fn link(world: &Neighbours, pod: usize, kind: LinkKind) -> PodLink {
    let name = format!("pod{pod}");
    let interface = world.node.run(|| if_nametoindex(name.as_str()).expect("an index"));
    PodLink { kind, interface, pod: [0; 6], bridge: None }
}

/// All pods' links are shared and have their programs.
fn shared() -> Neighbours {
    let world = Neighbours::new();
    for pod in [CLIENT, SERVER, OTHER] {
        let link = link(&world, pod, LinkKind::Shared);
        world.node.run(|| world.dataplane.attach_link(link.interface).expect("attached"));
        world.dataplane.set_link(world.number(pod), Some(&link)).expect("a link");
    }
    world
}

#[test]
fn direct_connections_pass_shared_links() {
    let world = shared();
    let app = world.pods[SERVER].listen_dual(8080);
    // What the bridge does not forward is not missed: connections do not need it after the handshake.
    for text in [V4[SERVER], V6[SERVER]] {
        let to = at(text, 8080);
        world.allow(CLIENT, SERVER, to);
        let client = world.pods[CLIENT].connect(to).unwrap_or_else(|error| panic!("{text}: {error}"));
        let (server, _) = accept(&app);
        assert_eq!((world.flows().len(), world.entries("LINK_FLOWS")), (1, 1), "{text}");
        assert_connected(text, &client, &server);
        assert_connected(text, &server, &client);
        let bulk = vec![7; 4 << 20];
        let received = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                (&client).write_all(&bulk).expect("sending");
                client.shutdown(Shutdown::Write).expect("half closed");
            });
            let mut received = Vec::new();
            (&server).read_to_end(&mut received).expect("receiving");
            sender.join().expect("sent");
            received
        });
        assert_eq!(received.len(), bulk.len(), "{text}");
        (&server).write_all(b"after the half-close").expect("sending");
        drop(server);
        let mut rest = Vec::new();
        (&client).read_to_end(&mut rest).expect("an orderly end");
        assert_eq!(rest, b"after the half-close", "{text}");
        drop(client);
        world.until_no_flow_is_tracked();
        assert_eq!(world.entries("LINK_FLOWS"), 1, "{text}: known until it is swept");
        until("both ends are known to have closed", || {
            world.dataplane.sweep_links(Duration::ZERO).expect("swept");
            world.entries("LINK_FLOWS") == 0
        });
    }
    for reason in [KernelReason::LinkPacketForged, KernelReason::LinkHandshakeForged] {
        assert_eq!(counter(&world.dataplane, reason), 0, "{reason:?}: nothing of an honest connection");
    }
}

/// The daemon attaches a shared link's programs again whenever it reads the link, which may be before the
/// next look.
#[test]
fn program_that_reading_a_link_attaches_again_is_told_by_the_next_look() {
    let world = shared();
    let interface = link(&world, CLIENT, LinkKind::Shared).interface;
    let on_this_link = |look: Look| {
        assert!(look.errors.is_empty(), "{:?}", look.errors);
        let of = format!("_pod-{interface}-");
        look.found.into_iter().filter(|it| it.object.contains(&of)).map(|it| it.found).collect::<Vec<_>>()
    };
    let read_again = || world.node.run(|| world.dataplane.attach_link(interface).expect("attached"));
    assert_eq!(on_this_link(world.dataplane.put_right(&[])), [""; 0], "nothing differs at first");
    for name in ["from_pod", "to_pod"] {
        let prefix = format!("{name}-{interface}-");
        let pin = || -> PathBuf {
            let versions = fs::read_dir(folder(world.settings())).expect("the instance's folder");
            let folders = versions.map(|version| version.expect("a version").path());
            let pins = folders.flat_map(|folder| fs::read_dir(folder).expect("pins"));
            let mut pins = pins.map(|pin| pin.expect("a pin"));
            pins.find(|pin| pin.file_name().to_string_lossy().starts_with(&prefix)).expect("a link").path()
        };
        bpftool(&["link", "detach", "pinned", &pin().to_string_lossy()]);
        read_again();
        assert_eq!(on_this_link(world.dataplane.put_right(&[])), ["detached"], "{name}");
        fs::remove_file(pin()).expect("the pin is removed");
        read_again();
        assert_eq!(on_this_link(world.dataplane.put_right(&[])), ["no pin"], "{name}");
        read_again();
        assert_eq!(on_this_link(world.dataplane.put_right(&[])), [""; 0], "{name}: told once");
    }
}

#[test]
fn resets_and_refusals_pass_shared_links() {
    let world = shared();
    let to = at(V4[SERVER], 8080);
    world.allow(CLIENT, SERVER, to);
    let refused = world.pods[CLIENT].connect(to).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let app = world.pods[SERVER].listen_dual(8080);
    let client = world.pods[CLIENT].connect(to).expect("direct");
    let (server, _) = accept(&app);
    server.set_linger(Some(Duration::ZERO)).expect("a reset on close");
    drop(server);
    let reset = (&client).read(&mut [0; 1]).expect_err("a reset");
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn pairs_of_different_or_unknown_links_take_the_tunnel() {
    let world = shared();
    let app = world.pods[SERVER].listen_dual(8080);
    let to = at(V4[SERVER], 8080);
    world.allow(CLIENT, SERVER, to);
    let kinds: [(&str, Option<LinkKind>); 3] = [
        ("unknown", None),
        ("isolated beside shared", Some(LinkKind::Isolated)),
        ("trusted beside shared", Some(LinkKind::Trusted)),
    ];
    for (name, kind) in kinds {
        let changed = kind.map(|kind| link(&world, SERVER, kind));
        world.dataplane.set_link(world.number(SERVER), changed.as_ref()).expect("a link");
        let client = world.pods[CLIENT].connect(to).expect("captured");
        world.daemons[CLIENT].captured(&world.dataplane, to);
        assert_eq!(world.flows(), [], "{name}");
        drop(client);
    }
    let again = link(&world, SERVER, LinkKind::Shared);
    world.dataplane.set_link(world.number(SERVER), Some(&again)).expect("a link");
    let client = world.pods[CLIENT].connect(to).expect("direct again");
    drop((accept(&app), client));
}

#[test]
fn syn_from_another_link_than_the_clients_is_refused() {
    let world = shared();
    let app = world.pods[SERVER].listen_dual(8080);
    let to = at(V4[SERVER], 8080);
    world.allow(CLIENT, SERVER, to);
    let client = world.pods[CLIENT].connect(to).expect("direct");
    drop((accept(&app), client));
    // The link is shared, but its programs are not where it is: the SYN is not seen.
    let mut elsewhere = link(&world, CLIENT, LinkKind::Shared);
    elsewhere.interface += 1000;
    world.dataplane.set_link(world.number(CLIENT), Some(&elsewhere)).expect("a link");
    let socket = world.pods[CLIENT].socket(socket2::Domain::IPV4);
    let failed = socket.connect_timeout(&to.into(), Duration::from_millis(1500));
    assert!(failed.is_err(), "the SYN came from another link than told");
    until("it is counted", || counter(&world.dataplane, KernelReason::LinkHandshakeForged) > 0);
}
