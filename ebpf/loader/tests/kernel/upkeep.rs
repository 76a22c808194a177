//! What differs in the kernel from what the daemon wrote is found and put right: each map's entries, links,
//! pins and listeners, taken away one by one.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;

use ambit_loader::{Dataplane, Inbound, InboundMode, Lease, Listeners, Look, Served};

use crate::lab::{DEADLINE, Daemon, Lab, MESH_V4, POD_V4, Pod, accept, address, at, local};
use crate::leaks::folder;
use crate::neighbours::{CLIENT, Neighbours, SERVER, V4};

fn look(dataplane: &Dataplane, pod: &Pod, daemon: &Daemon) -> Look {
    let listeners: Listeners<'_> = daemon.listeners();
    let mut look = dataplane.put_right(&[Served { netns: pod.as_fd(), cookie: pod.cookie, listeners }]);
    assert!(look.errors.is_empty(), "{:?}", look.errors);
    assert!(!look.stands_by);
    // Other tests put programs of others on the same hooks, before ours.
    look.found.retain(|difference| difference.found != DISPLACED);
    look
}

const DISPLACED: &str = "another program before it";

pub(crate) fn bpftool(arguments: &[&str]) {
    let output = Command::new("bpftool").args(arguments).output().expect("bpftool runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bpftool {}: {error}", arguments.join(" "));
}

/// The hexadecimal bytes of a number, as bpftool wants them.
fn bytes(number: u64) -> Vec<String> {
    number.to_ne_bytes().iter().map(u8::to_string).collect()
}

#[test]
fn what_is_taken_away_is_put_right() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let daemon = pod.enrol(&dataplane);
    let modes = Inbound {
        default: InboundMode::Strict,
        ports: [(80, InboundMode::Check)].into(),
        probe_ports: [].into(),
    };
    dataplane.set_inbound(pod.cookie, &modes).expect("a mode");
    dataplane.set_addresses(daemon.number, &[address(POD_V4)].into()).expect("addresses");
    dataplane.set_host(pod.outside.cookie).expect("the node's namespace");
    let folder = folder(lab.last()).join(format!("v{}", version(lab.last())));
    assert_eq!(look(&dataplane, &pod, &daemon).found, [], "nothing differs at first");

    let pin = |name: &str| folder.join(name).to_str().expect("a path").to_owned();
    let link = |prefix: &str| -> PathBuf {
        let links = fs::read_dir(&folder).expect("pins").map(|entry| entry.expect("a pin").path());
        let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
        links.into_iter().find(|path| name(path).starts_with(prefix)).expect("a link")
    };
    let by_cookie = bytes(pod.cookie.0);
    let by_number = bytes(daemon.number.0);
    let port: Vec<String> =
        by_cookie.iter().cloned().chain([80, 0, 0, 0, 0, 0, 0, 0].map(|b: u8| b.to_string())).collect();
    let slot: Vec<String> = by_cookie.iter().cloned().chain([0_u8; 8].map(|b| b.to_string())).collect();
    let mapped = |v4: [u8; 4]| -> Vec<String> {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255].into_iter().chain(v4).map(|b: u8| b.to_string()).collect()
    };
    let entries = [
        ("PODS", by_cookie.clone()),
        ("POD_NAMES", by_cookie.clone()),
        ("POD_FLOWS", by_cookie.clone()),
        ("POD_HANDOFFS", by_cookie.clone()),
        ("GENERATIONS", by_number),
        ("PORTS", port),
        ("LISTENERS", slot),
        ("LOCALS", mapped([10, 1, 0, 2])),
    ];
    for (map, key) in entries {
        let pinned = pin(map);
        let mut arguments = vec!["map", "delete", "pinned", &pinned, "key"];
        arguments.extend(key.iter().map(String::as_str));
        bpftool(&arguments);
        let found = look(&dataplane, &pod, &daemon).found;
        assert_eq!(found.len(), 1, "{map}: {found:?}");
        assert_eq!((found[0].kind, found[0].found.as_str()), (map, "missing"));
        assert_eq!(look(&dataplane, &pod, &daemon).found, [], "{map} is as it was");
    }

    for prefix in
        ["connect4-", "connect6-", "getpeername4-", "getpeername6-", "socket_operations-", "inbound-"]
    {
        let path = link(prefix);
        fs::remove_file(&path).expect("the pin is removed");
        let found = look(&dataplane, &pod, &daemon).found;
        assert_eq!(found.len(), 1, "{prefix}: {found:?}");
        assert_eq!((found[0].kind, found[0].found.as_str()), ("link", "no pin"), "{prefix}");
        bpftool(&["link", "detach", "pinned", path.to_str().expect("a path")]);
        let found = look(&dataplane, &pod, &daemon).found;
        assert_eq!(found.len(), 1, "{prefix}: {found:?}");
        assert_eq!((found[0].kind, found[0].found.as_str()), ("link", "detached"), "{prefix}");
        assert_eq!(look(&dataplane, &pod, &daemon).found, [], "{prefix}: as it was");
    }
    fs::remove_file(folder.join("PODS")).expect("the pin is removed");
    let found = look(&dataplane, &pod, &daemon).found;
    assert_eq!((found[0].kind, found[0].object.as_str()), ("pin", "PODS"), "{found:?}");

    // An entry that nobody wrote goes, once it was seen twice.
    let foreign = pin("DESTINATIONS");
    let stranger = mapped([192, 0, 2, 9]);
    let mut arguments = vec!["map", "update", "pinned", &foreign, "key"];
    arguments.extend(stranger.iter().map(String::as_str));
    arguments.extend(["value", "1"]);
    bpftool(&arguments);
    assert_eq!(look(&dataplane, &pod, &daemon).found, []);
    assert_eq!(look(&dataplane, &pod, &daemon).found.len(), 1);
    assert!(!dataplane.destinations().expect("destinations").contains(&address("192.0.2.9")));

    // All of it works.
    let _client = pod.connect(at(MESH_V4, 80)).expect("captured");
    assert_eq!(daemon.captured(&dataplane, at(MESH_V4, 80)).1, Some(at(MESH_V4, 80)));
    let app = pod.listen_at(at(POD_V4, 9000));
    let client = pod.outside.connect(at(POD_V4, 9000)).expect_err("strict");
    assert_eq!(client.kind(), std::io::ErrorKind::ConnectionRefused);
    let _own = pod.connect(at(POD_V4, 9000)).expect("its own");
    let _ = accept(&app);
}

#[test]
fn older_daemon_stands_by_while_a_newer_one_lives() {
    let mut lab = Lab::new();
    let older = lab.dataplane();
    let newer = Dataplane::open(lab.last()).expect("the instance opens");
    assert!(older.put_right(&[]).stands_by);
    assert!(!newer.put_right(&[]).stands_by);
    assert!(older.put_right(&[]).stands_by);
    ambit_loader::detach(lab.last()).expect("detached");
    assert!(newer.put_right(&[]).stands_by, "nothing is attached again");
}

#[test]
fn pod_is_captured_by_one_version_only() {
    let mut lab = Lab::new();
    let older = lab.dataplane();
    let pod = Pod::new();
    let olds = pod.enrol(&older);
    let mode = |default| Inbound { default, ports: [].into(), probe_ports: [].into() };
    older.set_inbound(pod.cookie, &mode(InboundMode::Strict)).expect("a mode");
    drop((older, olds));
    // What it left becomes an older version's.
    let instance = folder(lab.last());
    let version = format!("v{}", version(lab.last()));
    fs::rename(instance.join(version), instance.join("v1")).expect("renamed");

    let newer = Dataplane::open(lab.last()).expect("the instance opens");
    newer.renew_lease(Lease::OpenMode, DEADLINE * 10).expect("a lease");
    newer.add_destination(address(MESH_V4)).expect("a destination");
    let daemon = pod.enrol(&newer);
    newer.set_inbound(pod.cookie, &mode(InboundMode::Open)).expect("a mode");
    let app = pod.listen_at(at(POD_V4, 9000));
    let _client = pod.outside.connect(at(POD_V4, 9000)).expect("the older version's mode does not count");
    let _ = accept(&app);
    let _client = pod.connect(at(MESH_V4, 80)).expect("captured");
    assert_eq!(daemon.captured(&newer, at(MESH_V4, 80)).1, Some(at(MESH_V4, 80)));
    assert_eq!(newer.remove_older().expect("removed"), 1);
    assert!(!instance.join("v1").exists());
    let _client = pod.connect(at(MESH_V4, 80)).expect("captured, as before");
    assert_eq!(daemon.captured(&newer, at(MESH_V4, 80)).1, Some(at(MESH_V4, 80)));
}

#[test]
fn verdicts_for_a_pod_that_ends_are_void() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen(V4[SERVER]);
    let to = local(&app);
    world.allow(CLIENT, SERVER, to);
    let _direct = world.pods[CLIENT].connect(to).expect("direct");
    let _ = accept(&app);
    world.dataplane.end(world.pods[SERVER].cookie).expect("ended");
    let _tunnel = world.pods[CLIENT].connect(to).expect("captured");
    let (_, original) = world.daemons[CLIENT].captured(&world.dataplane, to);
    assert_eq!(original, Some(to), "the daemon decides again");
    assert_eq!(
        world.dataplane.generation(world.number(SERVER)).expect("generations"),
        None,
        "and caches nothing"
    );
}

fn version(settings: &ambit_loader::Settings) -> String {
    let versions = fs::read_dir(folder(settings)).expect("the instance's folder");
    let names = versions.map(|entry| entry.expect("a version").file_name().to_string_lossy().into_owned());
    names.into_iter().next().expect("a version").trim_start_matches('v').to_owned()
}
