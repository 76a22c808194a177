//! The controller as a process: object files in, a real xDS client over TLS.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use ambit_core::mesh::Change;
use ambit_xds::ca;
use ambit_xds::client::Connection;
use rcgen::{CertificateParams, KeyPair, SanType};
use support::{Daemon, Place, connection, free_port, output, policy, shop, wait_for};

const DAY: Duration = Duration::from_hours(24);

#[test]
fn good_files_reach_a_daemon_and_bad_ones_are_reported() {
    let place = Place::with_shop();
    let controller = place.start();
    let daemon = place.daemon(&controller);
    daemon.wait_synced();
    daemon.wait_policies(&[]);
    assert_eq!(controller.debug()["problems"], serde_json::json!([]));

    // A new file, an edited one.
    place.write("policy.yaml", &policy("p", 1));
    daemon.wait_policies(&["shop/p: 1 rules"]);
    place.write("policy.yaml", &policy("p", 2));
    daemon.wait_policies(&["shop/p: 2 rules"]);

    // A bad version is reported by object and field, and the last good one stays in force; its neighbour in
    // the file is updated.
    let bad = policy("p", 1)
        .replace("principals: [cluster.local/ns/shop/sa/web]", "ipBlocks: [10.0.0.0/8, nonsense]");
    place.write("policy.yaml", &(bad + &policy("q", 1)));
    daemon.wait_policies(&["shop/p: 2 rules", "shop/q: 1 rules"]);
    let problem = wait_for("the problem to be reported", || {
        let debug = controller.debug();
        debug["problems"].get(0).cloned().ok_or(debug.to_string())
    });
    assert_eq!(problem["file"], "policy.yaml");
    assert_eq!(problem["object"], "AuthorizationPolicy shop/p");
    assert_eq!(problem["field"], "spec.rules[0].from[0].source.ipBlocks[1]");
    assert_eq!(problem["verdict"], "rejected");
    assert_eq!(problem["earlier_version_in_force"], true);
    let rejected = "ambit_controller_objects_rejected{kind=\"AuthorizationPolicy\"}";
    assert_eq!(controller.metric(rejected), Some(1.0));
    assert_eq!(controller.metric("ambit_controller_objects{kind=\"Pod\"}"), Some(2.0));
    let log = controller.log();
    let line = log.lines().find(|line| line.contains("object rejected")).unwrap_or_else(|| panic!("{log}"));
    for part in
        ["AuthorizationPolicy shop/p", "spec.rules[0].from[0].source.ipBlocks[1]", "nonsense", "policy.yaml"]
    {
        assert!(line.contains(part), "{part}: {line}");
    }

    // Corrected, then deleted.
    place.write("policy.yaml", &policy("p", 3));
    daemon.wait_policies(&["shop/p: 3 rules"]);
    wait_for("the problem to be gone", || match controller.metric(rejected) {
        Some(0.0) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    place.remove("policy.yaml");
    daemon.wait_policies(&[]);
    assert!(controller.terminate().success());
}

#[test]
fn an_object_in_two_files_comes_from_the_first_by_name() {
    let place = Place::with_shop();
    place.write("b.yaml", &policy("p", 2));
    let controller = place.start();
    let daemon = place.daemon(&controller);
    daemon.wait_policies(&["shop/p: 2 rules"]);
    place.write("a.yaml", &policy("p", 1));
    daemon.wait_policies(&["shop/p: 1 rules"]);
    wait_for("the duplicate to be reported", || {
        let debug = controller.debug();
        let problem = &debug["problems"][0];
        let reported = problem["verdict"] == "duplicate" && problem["file"] == "b.yaml";
        if reported { Ok(()) } else { Err(debug.to_string()) }
    });
    // A rename is one step: the policy never goes away.
    daemon.received();
    fs::rename(place.path("objects/a.yaml"), place.path("objects/0.yaml")).unwrap();
    place.remove("b.yaml");
    wait_for("the duplicate to be gone", || {
        let debug = controller.debug();
        if debug["problems"] == serde_json::json!([]) { Ok(()) } else { Err(debug.to_string()) }
    });
    assert_eq!(daemon.received(), []);
}

#[test]
fn a_daemon_gets_only_what_changed_while_the_controller_was_away() {
    let place = Place::new();
    place.configure(&format!("listen: 127.0.0.1:{}\n", free_port()));
    place.write("shop.yaml", &shop());
    place.write("policy.yaml", &policy("p", 1));
    let controller = place.start();
    let bootstrap = place.joined("node-a", controller.xds);
    let daemon = Daemon::connect(connection(&bootstrap));
    daemon.wait_policies(&["shop/p: 1 rules"]);
    assert!(controller.terminate().success());
    wait_for("the daemon to disconnect", || {
        let status = daemon.status.borrow().clone();
        if status.connected { Err(format!("{status:?}")) } else { Ok(()) }
    });
    daemon.received();

    // While the controller is stopped, one file changes and another becomes invalid.
    place.write("policy.yaml", &policy("p", 2));
    place.write("shop.yaml", "a: [");
    let controller = place.start();
    daemon.wait_policies(&["shop/p: 2 rules"]);
    let received = daemon.received();
    assert!(matches!(&received[..], [Change::PutPolicy(_)]), "{received:?}");
    // The last good version of the other survived the restart.
    let debug = controller.debug();
    assert_eq!(debug["objects"]["Pod"], 2, "{debug}");
    assert_eq!(debug["problems"][0]["earlier_version_in_force"], true, "{debug}");
    assert_eq!(place.joined("node-a", controller.xds), bootstrap, "the CA and the tokens survived too");
}

/// A certificate request for a new key that names these.
fn csr(names: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

#[test]
fn certificates_are_issued_only_to_the_nodes_of_their_workloads() {
    let place = Place::with_shop();
    let controller = place.start();
    let a = connection(&place.joined("node-a", controller.xds));
    let b = connection(&place.joined("node-b", controller.xds));
    let daemon = Daemon::connect(a.clone());
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let ask = |connection: &Connection, identity: &str, csr: String| {
        let client = daemon.block_on(async { ca::Client::new(connection.clone()) }).unwrap();
        let identity = identity.parse().unwrap();
        let answer = daemon.block_on(client.create_certificate(&csr, &identity, DAY));
        answer.map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {}", source.unwrap_or_default())
        })
    };

    // Its own workload's: openssl accepts it, for the one name and both uses.
    let chain = ask(&a, web, csr(&[web])).unwrap();
    assert_eq!(chain.len(), 2);
    fs::write(place.path("leaf.pem"), &chain[0]).unwrap();
    fs::write(place.path("root.pem"), &a.root_pem).unwrap();
    for purpose in ["sslserver", "sslclient"] {
        let verified = output(
            "openssl",
            &["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root.pem", "leaf.pem"],
            place.folder.path(),
        );
        assert_eq!(verified.trim(), "leaf.pem: OK");
    }
    let names = output(
        "openssl",
        &["x509", "-in", "leaf.pem", "-noout", "-ext", "subjectAltName,extendedKeyUsage"],
        place.folder.path(),
    );
    assert!(names.contains(&format!("    URI:{web}\n")), "{names}");
    assert_eq!(names.matches("URI:").count(), 1, "{names}");
    assert!(names.contains("TLS Web Server Authentication, TLS Web Client Authentication"), "{names}");

    // Everything else is refused, with the reason.
    let other_place = Place::new();
    let other = other_place.joined("node-a", controller.xds);
    let foreign_token = Connection { token: other.token.reveal().to_owned(), ..a.clone() };
    let changed_token = Connection { token: a.token.replace("node-a", "node-b"), ..a.clone() };
    let foreign_root = Connection { root_pem: other.root.clone(), ..a.clone() };
    let wrong_name = Connection { server_name: "elsewhere".to_owned(), ..a.clone() };
    let stranger = "spiffe://cluster.local/ns/shop/sa/db";
    let rows = [
        ("another node's workload", &a, stranger, csr(&[stranger]), "no workload of"),
        ("the other way round", &b, web, csr(&[web]), "no workload of"),
        (
            "no workload's identity",
            &a,
            "spiffe://cluster.local/ns/shop/sa/nobody",
            csr(&[]),
            "no workload of",
        ),
        ("a request for another name", &a, web, csr(&[stranger]), "claims"),
        ("no request", &a, web, "nonsense".to_owned(), "is not a PEM certificate request"),
        ("another controller's token", &foreign_token, web, csr(&[web]), "token is not valid"),
        ("a token with another node's name", &changed_token, web, csr(&[web]), "token is not valid"),
        ("another controller's root", &foreign_root, web, csr(&[web]), ""),
        ("another server's name", &wrong_name, web, csr(&[web]), ""),
    ];
    for (name, connection, identity, csr, expected) in rows {
        let error = ask(connection, identity, csr).expect_err(name);
        assert!(error.contains(expected), "{name}: {error}");
    }
    let issued = controller.metric("ambit_controller_certificates_issued_total");
    assert_eq!(issued, Some(1.0));
    let refused = |reason: &str| {
        controller.metric(&format!("ambit_controller_certificates_refused_total{{reason=\"{reason}\"}}"))
    };
    assert_eq!((refused("not_hosted"), refused("bad_request")), (Some(3.0), Some(2.0)));

    // A workload that leaves the mesh loses its identity.
    place.write("shop.yaml", &shop().replace("istio.io/dataplane-mode: ambient", "x: y"));
    wait_for("the identity to be gone", || match ask(&a, web, csr(&[web])) {
        Ok(_) => Err("still issued".to_owned()),
        Err(error) if error.contains("no workload of") => Ok(()),
        Err(error) => Err(error),
    });
}

#[test]
fn a_daemon_with_an_invalid_token_receives_nothing() {
    let place = Place::with_shop();
    let controller = place.start();
    let mut wrong = connection(&place.joined("node-a", controller.xds));
    wrong.token.push('0');
    let daemon = Daemon::connect(wrong);
    let error =
        wait_for("the refusal", || daemon.status.borrow().error.clone().ok_or("no error yet".to_owned()));
    assert!(error.contains("token is not valid"), "{error}");
    assert_eq!(support::outline(&daemon.mesh()), Vec::<String>::new());
}

#[test]
fn secrets_are_private_and_created_once() {
    let place = Place::new();
    // Concurrent first runs.
    let threads: Vec<_> = (0..6)
        .map(|node| {
            let file = place.path(&format!("n{node}.yaml"));
            let mut command = place.command("bootstrap");
            command
                .args(["--node", &format!("n{node}"), "--address", "10.0.0.1:15012", "--output"])
                .arg(&file);
            (file, command.spawn().unwrap())
        })
        .collect();
    let roots: Vec<String> = threads
        .into_iter()
        .map(|(file, mut child)| {
            assert!(child.wait().unwrap().success());
            let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, 0o600);
            ambit_daemon_kit::bootstrap::Bootstrap::read(&file).unwrap().root
        })
        .collect();
    assert!(roots.iter().all(|root| *root == roots[0]), "one root");
    for name in ["state/ca.pem", "state/token.key"] {
        let mode = fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{name}");
    }
    assert!(!roots[0].contains("PRIVATE"), "the key stays");

    // A secret that others can read is not used.
    fs::set_permissions(place.path("state/ca.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    for verb in ["run", "bootstrap"] {
        let mut command = place.command(verb);
        if verb == "bootstrap" {
            command.args(["--node", "a", "--address", "h:1", "--output"]).arg(place.path("x.yaml"));
        }
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && errors.contains("ca.pem") && errors.contains("0644"),
            "{verb}: {errors}"
        );
    }
}

#[test]
fn invalid_configurations_are_refused() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let no_objects = "objects: /nonexistent/objects\nstate: STATE\nlisten: 127.0.0.1:0\nmetrics: \
                      127.0.0.1:0\nadmin: 127.0.0.1:0\n";
    let state = place.path("state").display().to_string();
    let rows = [
        ("an unknown field", "objects: o\nstate: s\nlistens: x\n".to_owned(), "listens: unknown field"),
        ("a bad value", "objects: o\nstate: s\nlisten: x\n".to_owned(), "listen: "),
        ("no objects folder", no_objects.replace("STATE", &state), "/nonexistent/objects"),
        (
            "a port that is taken",
            no_objects.replace("STATE", &state).replacen(
                "listen: 127.0.0.1:0",
                &format!("listen: {taken}"),
                1,
            ),
            &taken.to_string(),
        ),
    ];
    for (name, config, expected) in rows {
        fs::write(place.path("controller.yaml"), config).unwrap();
        let output = place.command("run").output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{name}");
        assert!(errors.contains(expected), "{name}: {errors}");
    }
    let place = Place::new();
    for (node, address, expected) in [("a b", "h:1", "a b"), ("a", "h", "--address h")] {
        let output = place.bootstrap(node, address);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && errors.contains(expected), "{node} {address}: {errors}");
    }
}

#[test]
fn it_ends_in_time_with_connected_clients() {
    let place = Place::with_shop();
    let controller = place.start();
    let daemon = place.daemon(&controller);
    daemon.wait_synced();
    // A client that never starts its TLS handshake.
    let _silent = std::net::TcpStream::connect(controller.xds).unwrap();
    let start = Instant::now();
    assert!(controller.terminate().success());
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(!place.path("state/addresses.json").exists());
}

#[test]
fn a_half_written_file_is_not_taken() {
    let place = Place::with_shop();
    place.write("policy.yaml", &policy("p", 1));
    let controller = place.start();
    let daemon = place.daemon(&controller);
    daemon.wait_policies(&["shop/p: 1 rules"]);
    // A machine so busy that the writer pauses for as long as a finished file rests proves nothing: write
    // again.
    for rules in 30.. {
        daemon.received();
        let pause = write_slowly(&place.path("objects/policy.yaml"), &policy("p", rules));
        daemon.wait_policies(&[&format!("shop/p: {rules} rules")]);
        if pause < Duration::from_millis(80) {
            let received = daemon.received();
            assert!(matches!(&received[..], [Change::PutPolicy(_)]), "{received:?}");
            return;
        }
    }
}

/// Truncates the file and writes it line by line: every prefix would mean something else, the empty one "no
/// policy". The longest pause between two lines.
fn write_slowly(path: &std::path::Path, text: &str) -> Duration {
    let mut file = fs::File::create(path).unwrap();
    let mut longest = Duration::ZERO;
    let mut last = Instant::now();
    for line in text.split_inclusive('\n') {
        std::thread::sleep(Duration::from_millis(5));
        file.write_all(line.as_bytes()).unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest
}

#[test]
fn a_replaced_folder_is_followed() {
    let place = Place::with_shop();
    place.write("policy.yaml", &policy("p", 1));
    let controller = place.start();
    let daemon = place.daemon(&controller);
    daemon.wait_policies(&["shop/p: 1 rules"]);
    daemon.received();
    // While it is missing, no object counts as deleted.
    let (objects, old) = (place.path("objects"), place.path("old"));
    fs::rename(&objects, &old).unwrap();
    wait_for("the missing folder to be reported", || {
        let debug = controller.debug();
        if debug["unreachable"][""].is_string() { Ok(()) } else { Err(debug.to_string()) }
    });
    fs::create_dir(&objects).unwrap();
    for name in ["shop.yaml", "policy.yaml"] {
        fs::copy(old.join(name), objects.join(name)).unwrap();
    }
    wait_for("the folder to be back", || {
        let debug = controller.debug();
        if debug["unreachable"].as_object().unwrap().is_empty() { Ok(()) } else { Err(debug.to_string()) }
    });
    place.write("policy.yaml", &policy("p", 2));
    daemon.wait_policies(&["shop/p: 2 rules"]);
    let received = daemon.received();
    assert!(matches!(&received[..], [Change::PutPolicy(_)]), "{received:?}");
}

#[test]
fn a_rejected_version_leaves_the_last_good_one_in_force_across_restarts() {
    let place = Place::with_shop();
    place.write("policy.yaml", &policy("p", 1));
    let controller = place.start();
    let bootstrap = place.joined("node-a", controller.xds);
    let daemon = Daemon::connect(connection(&bootstrap));
    daemon.wait_policies(&["shop/p: 1 rules"]);
    let source = "from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]";
    let refused = policy("p", 2).replace(source, "when: [{key: source.serviceAccount, values: [a/b/c]}]");
    place.write("policy.yaml", &refused);
    let rejection = |controller: &support::Controller| {
        wait_for("the rejection to be reported", || {
            let debug = controller.debug();
            let refused = debug["problems"].as_array().unwrap().iter().find(|it| it["verdict"] == "rejected");
            refused.cloned().ok_or(debug.to_string())
        })
    };
    let reported = rejection(&controller);
    assert_eq!(reported["object"], "AuthorizationPolicy shop/p");
    assert_eq!(reported["field"], "spec.rules[0].when[0].values[0]");
    assert_eq!(reported["earlier_version_in_force"], true);
    let rejected = "ambit_controller_objects_rejected{kind=\"AuthorizationPolicy\"}";
    assert_eq!(controller.metric(rejected), Some(1.0));
    daemon.wait_policies(&["shop/p: 1 rules"]);
    assert!(controller.terminate().success());
    let controller = place.start();
    rejection(&controller);
    let daemon = place.daemon(&controller);
    daemon.wait_policies(&["shop/p: 1 rules"]);
}
