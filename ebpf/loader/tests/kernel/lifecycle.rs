//! State that outlives a daemon, taking it over, and removing it completely.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use ambit_loader::{Dataplane, Error, Inbound, InboundMode, Settings, detach};

use crate::lab::{Lab, MESH_V4, MESH_V6, NODE_V4, POD_V4, Pod, accept, address, at, local, peer};
use crate::leaks::{InKernel, folder, pins};

fn assert_captured(name: &str, dataplane: &Dataplane, pod: &Pod, daemon: &crate::lab::Daemon) {
    for destination in [at(MESH_V4, 80), at(MESH_V6, 80)] {
        let client = pod.connect(destination).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(daemon.captured(dataplane, destination).1, Some(destination), "{name}");
        assert_eq!(peer(&client), destination, "{name}");
    }
}

#[test]
fn instances_are_independent() {
    let mut lab = Lab::new();
    let (first, second) = (lab.dataplane(), lab.dataplane());
    let (a, b) = (Pod::new(), Pod::new());
    let (daemon_a, daemon_b) = (a.enrol(&first), b.enrol(&second));
    assert_captured("the first", &first, &a, &daemon_a);
    assert_captured("the second", &second, &b, &daemon_b);

    // A destination of one instance only.
    first.add_destination(address(NODE_V4)).expect("a destination");
    let _client = a.connect(at(NODE_V4, 80)).expect("captured");
    assert_eq!(daemon_a.captured(&first, at(NODE_V4, 80)).1, Some(at(NODE_V4, 80)));
    let listener = b.outside.listen(NODE_V4);
    let client = b.connect(local(&listener)).expect("not captured");
    assert_eq!(accept(&listener).1, local(&client));

    // Marks of one instance have no effect in the other.
    let own = a.socket(socket2::Domain::IPV4);
    second.mark_outbound(own.as_fd()).expect("the mark");
    own.connect(&at(MESH_V4, 80).into()).expect("captured");
    let (server, found) = daemon_a.captured(&first, at(MESH_V4, 80));
    assert_eq!(found, Some(at(MESH_V4, 80)));
    assert_eq!(second.original_destination(server.as_fd()).expect("the socket's storage"), None);

    let names = |dataplane: &Dataplane| {
        dataplane.pods().expect("pods").into_iter().map(|(pod, _)| pod).collect::<Vec<_>>()
    };
    assert_eq!((names(&first), names(&second)), (vec![a.cookie], vec![b.cookie]));
    second.release(b.cookie).expect("released");
    assert_captured("the first, after the second released its pod", &first, &a, &daemon_a);
}

/// A pod's rules that the next daemon must find.
fn rules() -> Inbound {
    Inbound {
        default: InboundMode::Strict,
        ports: BTreeMap::from([(8080, InboundMode::Open)]),
        probe_ports: [9090].into(),
    }
}

#[test]
fn next_daemon_takes_over_state() {
    let mut lab = Lab::new();
    let first = lab.dataplane();
    let settings = lab.last().clone();
    let pod = Pod::new();
    let daemon = pod.enrol(&first);
    first.set_inbound(pod.cookie, &rules()).expect("rules");
    let before = InKernel::of(&settings);
    // The daemon dies without releasing anything.
    drop(first);
    let app = pod.listen(POD_V4);
    assert_eq!(local(&app).ip(), address(POD_V4));
    let client = pod.connect(at(MESH_V4, 80)).expect("pinned programs still capture");
    assert_eq!(peer(&client), at(MESH_V4, 80));

    let second = Dataplane::open(&settings).expect("the instance opens");
    let after = InKernel::of(&settings);
    assert_eq!(
        (&before.programs, &before.links),
        (&after.programs, &after.links),
        "pinned objects are reused"
    );
    assert_eq!(second.pods().expect("pods"), [(pod.cookie, format!("Kubernetes//Pod/test/{}", pod.cookie))]);
    assert_eq!(second.destinations().expect("destinations"), [address(MESH_V4), address(MESH_V6)].into());
    let (_server, found) = daemon.captured(&second, at(MESH_V4, 80));
    assert_eq!(found, Some(at(MESH_V4, 80)), "a connection made without a daemon");
    second.enrol(pod.as_fd(), pod.cookie, "another name").expect("enrolled already");
    assert_eq!(second.pods().expect("pods"), [(pod.cookie, "another name".to_owned())]);
    assert_eq!(InKernel::of(&settings).links, after.links, "enrolling again attaches nothing");
    assert_captured("after taking over", &second, &pod, &daemon);

    // Its rules are known, too: setting others removes them.
    second.set_inbound(pod.cookie, &Inbound { ports: BTreeMap::new(), ..rules() }).expect("rules");
    let outside = pod.outside.socket(socket2::Domain::IPV4);
    let app = pod.listen_at(at(POD_V4, 8080));
    let error = outside.connect(&local(&app).into()).expect_err("the port is strict again");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);

    // Two daemons at the same time, as in an upgrade, see the same state.
    let third = Dataplane::open(&settings).expect("the instance opens");
    assert_captured("two daemons, the older", &second, &pod, &daemon);
    assert_captured("two daemons, the newer", &third, &pod, &daemon);
}

#[test]
fn programs_of_another_build_are_replaced_in_place() {
    let mut lab = Lab::new();
    let first = lab.dataplane();
    let settings = lab.last().clone();
    let pod = Pod::new();
    let daemon = pod.enrol(&first);
    let interface = pod.outside.run(|| nix::net::if_::if_nametoindex("pod0").expect("an index"));
    let attach = |dataplane: &Dataplane| {
        pod.outside.run(|| dataplane.attach_link(interface).expect("attached"));
    };
    attach(&first);
    drop(first);
    let before = InKernel::of(&settings);
    // As if another build had attached them: links have the object's hash in their names.
    for pin in pins(&settings) {
        let name = pin.file_name().expect("a name").to_string_lossy().into_owned();
        if let Some((beginning, _)) = name.rsplit_once('-') {
            std::fs::rename(&pin, pin.with_file_name(format!("{beginning}-0123456789abcdef")))
                .expect("renamed");
        }
    }
    let second = Dataplane::open(&settings).expect("the instance opens");
    second.enrol(pod.as_fd(), pod.cookie, "pod").expect("enrolled");
    attach(&second);
    let after = InKernel::of(&settings);
    assert_eq!(before.links, after.links, "the links stay attached");
    assert!(before.programs.is_disjoint(&after.programs), "the programs are new");
    assert_eq!(before.programs.len(), after.programs.len());
    let old =
        pins(&settings).iter().filter(|pin| pin.to_string_lossy().ends_with("0123456789abcdef")).count();
    assert_eq!(old, 0, "links of the other build");
    assert_captured("after the replacement", &second, &pod, &daemon);
    InKernel { programs: before.programs, ..InKernel::default() }.assert_gone();
}

#[test]
fn detach_removes_everything() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let settings = lab.last().clone();
    let pods = [Pod::new(), Pod::new()];
    let daemons: Vec<_> = pods.iter().map(|pod| pod.enrol(&dataplane)).collect();
    let held = InKernel::of(&settings);
    assert_eq!((held.programs.len(), held.links.len()), (7, 7), "five hooks and one for each pod");
    let client = pods[0].connect(at(MESH_V4, 80)).expect("captured");

    // While a daemon runs and a connection is open.
    detach(&settings).expect("detached");
    assert!(!folder(&settings).exists(), "no pin remains");
    assert!(dataplane.put_right(&[]).stands_by, "the daemon lets go of its links");
    InKernel { links: held.links.clone(), ..InKernel::default() }.assert_gone();
    let listener = pods[0].outside.listen(NODE_V4);
    dataplane.add_destination(address(NODE_V4)).expect("the daemon still has its maps");
    let native = pods[0].connect(local(&listener)).expect("not captured");
    assert_eq!(accept(&listener).1, local(&native));

    drop((client, native, daemons, dataplane));
    held.assert_gone();
    detach(&settings).expect("again: no error");
}

#[test]
fn detach_removes_everything_after_a_crash() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let settings = lab.last().clone();
    let pod = Pod::new();
    drop(pod.enrol(&dataplane));
    // A killed process runs no destructors; the kernel closes its descriptors.
    drop(dataplane);
    let held = InKernel::of(&settings);
    // The pod's namespace may be gone before the instance is detached.
    drop(pod);
    detach(&settings).expect("detached");
    held.assert_gone();
}

#[test]
fn partially_pinned_state_is_repaired() {
    let mut lab = Lab::new();
    let pod = Pod::new();
    for missing in ["connect4", "socket_operations", "inbound", "PODS", "SOCKETS"] {
        let dataplane = lab.dataplane();
        let settings = lab.last().clone();
        drop(pod.enrol(&dataplane));
        drop(dataplane);
        let held = InKernel::of(&settings);
        let pin = pins(&settings).into_iter().find(|pin| {
            let name = pin.file_name().expect("a name").to_string_lossy().into_owned();
            name == missing || name.starts_with(&format!("{missing}-"))
        });
        std::fs::remove_file(pin.expect("it is pinned")).expect("removed");

        let dataplane = Dataplane::open(&settings).expect("the instance opens");
        dataplane.add_destination(address(MESH_V4)).expect("a destination");
        dataplane.add_destination(address(MESH_V6)).expect("a destination");
        let daemon = pod.enrol(&dataplane);
        assert_captured(missing, &dataplane, &pod, &daemon);
        let outside = pod.outside.socket(socket2::Domain::IPV4);
        outside.connect(&at(POD_V4, 15008).into()).unwrap_or_else(|error| panic!("{missing}: {error}"));
        assert_eq!(local(&accept(&daemon.hbone_v4).0), at(POD_V4, 15008), "{missing}");
        let mended = InKernel::of(&settings);
        drop((dataplane, daemon));
        detach(&settings).expect("detached");
        held.assert_gone();
        mended.assert_gone();
    }
}

#[test]
fn released_pods_are_not_captured() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let settings = lab.last().clone();
    let (leaves, stays, gone) = (Pod::new(), Pod::new(), Pod::new());
    let shared = InKernel::of(&settings);
    let daemon = leaves.enrol(&dataplane);
    dataplane.set_inbound(leaves.cookie, &rules()).expect("rules");
    let with_one = InKernel::of(&settings);
    let kept = stays.enrol(&dataplane);
    dataplane.release(leaves.cookie).expect("released");
    dataplane.release(leaves.cookie).expect("again: no error");
    InKernel {
        programs: with_one.programs.difference(&shared.programs).copied().collect(),
        links: with_one.links.difference(&shared.links).copied().collect(),
        maps: with_one.maps.difference(&shared.maps).copied().collect(),
    }
    .assert_gone();

    dataplane.add_destination(address(NODE_V4)).expect("a destination");
    let listener = leaves.outside.listen(NODE_V4);
    let client = leaves.connect(local(&listener)).expect("not captured");
    assert_eq!(accept(&listener).1, local(&client));
    let app = leaves.listen_at(at(POD_V4, 9999));
    let outside = leaves.outside.connect(local(&app)).expect("connects without the mesh");
    assert_eq!(accept(&app).1, local(&outside));
    let result = dataplane.set_inbound(leaves.cookie, &rules());
    assert!(matches!(result, Err(Error::NotEnrolled(cookie)) if cookie == leaves.cookie));
    let result = dataplane.set_listeners(leaves.cookie, &daemon.listeners());
    assert!(matches!(result, Err(Error::NotEnrolled(cookie)) if cookie == leaves.cookie));
    assert_captured("the other pod", &dataplane, &stays, &kept);

    // A pod whose namespace is gone can be released.
    let cookie = gone.cookie;
    drop(gone.enrol(&dataplane));
    drop(gone);
    dataplane.release(cookie).expect("released");
    assert_eq!(
        dataplane.pods().expect("pods").into_iter().map(|(pod, _)| pod).collect::<Vec<_>>(),
        [stays.cookie]
    );

    // A released pod can be enrolled again.
    let daemon = leaves.enrol(&dataplane);
    assert_captured("enrolled again", &dataplane, &leaves, &daemon);
}

#[test]
fn failed_enrolment_leaves_no_state() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let pod = Pod::new();
    let not_a_namespace = std::fs::File::open("/dev/null").expect("a file");
    let result = dataplane.enrol(not_a_namespace.as_fd(), pod.cookie, "pod");
    assert!(matches!(result, Err(Error::Attach { program: "inbound", .. })), "{result:?}");
    let result = dataplane.enrol(pod.as_fd(), pod.cookie, &"x".repeat(509));
    assert!(matches!(result, Err(Error::NameTooLong(_))), "{result:?}");
    assert_eq!(dataplane.pods().expect("pods"), []);
    dataplane.add_destination(address(NODE_V4)).expect("a destination");
    let listener = pod.outside.listen(NODE_V4);
    let client = pod.connect(local(&listener)).expect("not captured");
    assert_eq!(accept(&listener).1, local(&client));
}

#[test]
fn open_fails_outside_a_bpf_filesystem() {
    let folder = tempfile::tempdir().expect("a directory");
    let settings = Settings {
        instance: "test".parse().expect("a name"),
        bpffs: folder.path().to_owned(),
        cgroup: None,
        object: None,
    };
    assert!(matches!(Dataplane::open(&settings), Err(Error::NotBpffs(path)) if path == folder.path()));
}
