//! Pods enter and leave the mesh: enrolled while they run, released, forgotten by their source, detached with
//! everything else.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use ambit_harness::{Enrolment, Family, Lab, NamespaceSpec, Node, Objects, PodSpec, eventually, files};
use ambit_suites::hbone;
use ambit_suites::pair::{APP, builder, targets};
use ambit_suites::{Load, Rows, Server, ask, greeted};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

/// How many of the node's links hang on pods (the others on the cgroup).
fn links(node: &Node) -> Result<usize> {
    Ok(Objects::pinned(&node.pins())?.links.len())
}

#[test]
fn open_connections_survive_enrolment() -> Result<()> {
    let lab = Lab::builder()
        .namespace(NamespaceSpec::new("shop"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/db").node(1))
        .start()?;
    let _server = Server::start(&lab.pod("shop/db"), "shop/db", APP)?;
    let (web, db) = (lab.pod("shop/web"), lab.pod("shop/db"));
    let to = SocketAddr::new(db.v4.into(), APP);
    let mut stream = greeted(&web, to)?;
    lab.label_namespace(NamespaceSpec::mesh("shop"))?;
    eventually("new connections travel in tunnels", || {
        let capture = lab.capture()?;
        ask(&web, to)?;
        let trace = capture.stop()?;
        ensure!(trace.tcp_port(APP) == 0 && trace.tcp_port(hbone::PORT) > 0, "plainly still");
        Ok(())
    })?;
    stream.write_all(b"as before")?;
    stream.shutdown(Shutdown::Write)?;
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo)?;
    assert_eq!(echo, b"as before");
    lab.finish()
}

#[test]
fn snapshot_releases_only_pods_of_its_own_source() -> Result<()> {
    let lab = builder().pod(PodSpec::new("shop/stays").node(1)).start()?;
    let node = &lab.nodes[1];
    let _servers = ["shop/db", "shop/stays"].map(|pod| Server::start(&lab.pod(pod), pod, APP));
    let (web, db, stays) = (lab.pod("shop/web"), lab.pod("shop/db"), lab.pod("shop/stays"));
    let before = links(node)?;
    let mut table = Rows::new();
    table.row("another source's empty snapshot", || {
        Enrolment::connect_as(&node.socket(), "another")?.snapshot_sent()?;
        ask(&web, SocketAddr::new(db.v4.into(), APP))?;
        let after = links(node)?;
        ensure!(after == before, "{before} links before, {after} after");
        Ok(())
    });
    table.row("a source that goes away without a word", || {
        drop(Enrolment::connect(&node.socket())?);
        ask(&web, SocketAddr::new(db.v4.into(), APP)).map(drop)
    });
    table.row("its own snapshot without one of the pods", || {
        let enrolment = Enrolment::connect(&node.socket())?;
        enrolment.keep(&stays)?;
        enrolment.snapshot_sent()?;
        eventually("that pod's link is gone", || {
            let after = links(node)?;
            ensure!(after == before - 1, "{before} links before, {after} after");
            Ok(())
        })?;
        ask(&web, SocketAddr::new(stays.v4.into(), APP)).context("the pod that was kept")?;
        // The mesh still counts on the other: it is out of reach rather than reached plainly.
        ensure!(
            ask(&web, SocketAddr::new(db.v4.into(), APP)).is_err(),
            "a mesh pod without a daemon answers"
        );
        Ok(())
    });
    table.finish();
    lab.finish()
}

#[test]
fn released_pod_talks_plaintext_and_others_stay_enrolled() -> Result<()> {
    let lab = builder().pod(PodSpec::new("shop/stays").node(1)).start()?;
    let _servers = ["shop/db", "shop/stays"].map(|pod| Server::start(&lab.pod(pod), pod, APP));
    let (web, db, stays) = (lab.pod("shop/web"), lab.pod("shop/db"), lab.pod("shop/stays"));
    let node = lab.node_of(&db);
    let before = Objects::pinned(&node.pins())?;
    // The order in which a CNI plugin and the API would do it: the object first.
    lab.update_pod(db.spec.clone().legacy())?;
    node.release(&db)?;
    eventually("it is reached plainly", || {
        let capture = lab.capture()?;
        ask(&web, SocketAddr::new(db.v4.into(), APP))?;
        let trace = capture.stop()?;
        ensure!(trace.tcp_port(APP) > 0 && trace.tcp_port(hbone::PORT) == 0, "by a tunnel still");
        Ok(())
    })?;
    eventually("its link is gone", || {
        let after = Objects::pinned(&node.pins())?;
        ensure!(
            after.links.len() < before.links.len(),
            "{} links before, {} after",
            before.links.len(),
            after.links.len()
        );
        Ok(())
    })?;
    let capture = lab.capture()?;
    ask(&web, SocketAddr::new(stays.v4.into(), APP))?;
    let trace = capture.stop()?;
    assert!(
        trace.tcp_port(APP) == 0 && trace.tcp_port(hbone::PORT) > 0,
        "the other pod is still in the mesh"
    );
    lab.finish()
}

#[test]
fn detach_removes_everything_and_pods_talk_plaintext() -> Result<()> {
    let mut table = Rows::new();
    for crash in [false, true] {
        let lab = builder().start()?;
        let _server = Server::start(&lab.pod("shop/db"), "shop/db", APP)?;
        let (web, to) = (lab.pod("shop/web"), targets(&lab)[0]);
        ask(&web, to)?;
        table.row(if crash { "after a crash" } else { "after an orderly end" }, || {
            let mut all = Vec::new();
            for node in &lab.nodes {
                let objects = Objects::pinned(&node.pins())?;
                ensure!(
                    !objects.programs.is_empty() && !objects.links.is_empty() && !objects.maps.is_empty(),
                    "{objects:?}"
                );
                all.push(objects);
                if crash {
                    node.ztunnel.kill()?;
                } else {
                    ensure!(node.ztunnel.stop()?.success());
                }
                let still = all.last().context("just pushed")?.alive();
                ensure!(!still.is_empty(), "nothing outlives the daemon");
            }
            ensure!(ask(&web, to).is_err(), "without a daemon something answers");
            for (node, objects) in lab.nodes.iter().zip(&all) {
                node.detach()?;
                let left = files(&node.pins())?;
                ensure!(left.is_empty() && !node.pins().exists(), "pins are left: {left:?}");
                objects.gone()?;
                node.detach().context("a second time there is nothing to do")?;
            }
            let answer = ask(&web, to).context("pods outside a mesh talk plainly")?;
            ensure!(answer.saw == web.ip(Family::V6));
            Ok(())
        });
        lab.finish()?;
    }
    table.finish();
    Ok(())
}

#[test]
fn two_instances_on_one_kernel_are_independent() -> Result<()> {
    let (first, second) = (builder().start()?, builder().start()?);
    let servers = [&first, &second].map(|lab| Server::start(&lab.pod("shop/db"), &lab.prefix, APP));
    for (lab, server) in [&first, &second].into_iter().zip(&servers) {
        ensure!(server.is_ok());
        let answer = ask(&lab.pod("shop/web"), targets(lab)[0])?;
        assert_eq!(answer.server, lab.prefix);
    }
    let load = Load::start(&second.pod("shop/web"), &targets(&second));
    load.progress(20)?;
    first.nodes[0].restart()?;
    first.nodes[1].ztunnel.kill()?;
    first.nodes[1].detach()?;
    load.progress(20)?;
    first.finish()?;
    load.progress(20)?;
    load.stop().flawless()?;
    second.finish()
}

#[test]
fn enrolment_requires_root_and_a_network_namespace() -> Result<()> {
    let lab = builder().start()?;
    let node = &lab.nodes[0];
    let mut table = Rows::new();
    table.row("root, with a pod's namespace", || {
        let enrolment = Enrolment::connect(&node.socket())?;
        enrolment.add(&lab.pod("shop/web"))
    });
    let pod = json!({"add": {"uid": "Kubernetes//Pod/shop/x", "namespace": "shop", "name": "x"}});
    let host = std::fs::File::open("/proc/self/ns/net")?;
    let file = std::fs::File::open("/dev/null")?;
    let mount = std::fs::File::open("/proc/self/ns/mnt")?;
    let wrong = [
        ("the host's namespace", Some(&host)),
        ("a file that is no namespace", Some(&file)),
        ("a namespace of another kind", Some(&mount)),
        ("no descriptor", None),
    ];
    for (name, descriptor) in wrong {
        table.row(name, || {
            let enrolment = Enrolment::connect(&node.socket())?;
            let descriptor = descriptor.map(std::os::fd::AsFd::as_fd);
            match enrolment.send(&pod, descriptor) {
                Ok(()) => bail!("it was acknowledged"),
                Err(_) => Ok(()),
            }
        });
    }
    table.row("a message that is none", || {
        let enrolment = Enrolment::connect(&node.socket())?;
        ensure!(enrolment.send(&json!({"add": 1}), None).is_err());
        Ok(())
    });
    table.row("another user", || {
        // perl is where git is.
        let script = format!(
            "use Socket; socket(S, AF_UNIX, SOCK_SEQPACKET, 0) or die; connect(S, sockaddr_un('{}')) or die \
             \"refused $!\"; send(S, '{{\"hello\":{{\"version\":1,\"source\":\"x\"}}}}', 0) or die \
             \"refused $!\"; recv(S, $answer, 4096, 0); print \"answer: $answer\";",
            node.socket().display()
        );
        let try_as = |user: u32| Command::new("perl").args(["-e", &script]).uid(user).gid(user).output();
        let root = try_as(0)?;
        ensure!(String::from_utf8_lossy(&root.stdout).contains("ack"), "root is refused: {root:?}");
        let user = try_as(65_534)?;
        ensure!(
            !String::from_utf8_lossy(&user.stdout).contains("ack"),
            "an ordinary user is acknowledged: {user:?}"
        );
        Ok(())
    });
    table.finish();
    lab.finish()
}
