use std::collections::BTreeSet;
use std::fs;

use super::*;
use crate::agent::installer::Installation;
use crate::entry::{Entry, PLUGIN};

const LIST: &str = "{\"name\":\"lab\",\"plugins\":[{\"type\":\"bridge\"}]}";

/// Every file and folder below one, by its path.
fn tree(folder: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(tree(&path));
        }
        all.insert(path);
    }
    all
}

#[test]
fn everything_installed_is_removed() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    for folder in ["bin", "conf", "bpf", "run", "image"] {
        fs::create_dir(path(folder)).unwrap();
    }
    fs::write(path("image/ambit-cni"), "binary").unwrap();
    fs::write(path("bin/bridge"), "another's").unwrap();
    fs::write(path("conf/10-lab.conflist"), LIST).unwrap();
    fs::write(path("bpf/another's"), "").unwrap();
    let before = tree(root.path());

    let layout = Layout { source: path("image/ambit-cni"), bin_dir: path("bin"), conf_dir: path("conf") };
    let entry = Entry {
        kind: PLUGIN.to_owned(),
        kubeconfig: "/etc/cni/net.d/ambit-cni.kubeconfig".into(),
        socket: "/run/ambit/enrol.sock".into(),
        cluster: "c".to_owned(),
        excluded_namespaces: Vec::new(),
        log_file: None,
        wraps_conf: false,
    };
    let credential = Some("credential".to_owned());
    let mut installation = Installation::new(layout.clone(), entry);
    installation.credential = credential;
    installation.pass().unwrap();
    fs::create_dir_all(path("bpf/ambit/v7/links")).unwrap();
    fs::write(path("bpf/ambit/v7/links/connect4"), "").unwrap();
    fs::create_dir_all(path("run/ambit/old")).unwrap();
    for file in ["agent.lock", "enrol.sock", "enrolled.json", "ambit-cni.log", "old/x"] {
        fs::write(path("run/ambit").join(file), "").unwrap();
    }
    assert_ne!(tree(root.path()), before);

    let traces = Traces {
        layout,
        pins: path("bpf/ambit"),
        run_dir: path("run/ambit"),
        outside: PathBuf::from("/nowhere"),
    };
    assert_eq!(traces.remove(), Vec::<String>::new());
    assert_eq!(tree(root.path()), before);
    assert_eq!(fs::read_to_string(path("conf/10-lab.conflist")).unwrap(), LIST);
    assert_eq!(traces.remove(), Vec::<String>::new(), "again");
}

#[test]
fn errors_are_returned_and_the_rest_is_removed() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    fs::create_dir_all(path("run/ambit")).unwrap();
    fs::write(path("run/ambit/agent.lock"), "").unwrap();
    // A file where a folder should be.
    fs::write(path("bpf"), "").unwrap();
    let layout = Layout { source: path("x"), bin_dir: path("bin"), conf_dir: path("conf") };
    let traces = Traces {
        layout,
        pins: path("bpf/ambit"),
        run_dir: path("run/ambit"),
        outside: PathBuf::from("/nowhere"),
    };
    let problems = traces.remove();
    assert!(problems.iter().any(|problem| problem.contains("list ")), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.contains("bpf/ambit")), "{problems:?}");
    assert!(!path("run/ambit").exists());
}

#[test]
fn verdicts() {
    let found = |uid: &str, deleting: bool, selector: &str| {
        let mut object = serde_json::json!({
            "metadata": {"name": "ztunnel", "uid": uid},
            "spec": {
                "selector": {},
                "template": {"spec": {"containers": [], "nodeSelector": {"disk": selector}}},
            },
        });
        if deleting {
            object["metadata"]["deletionTimestamp"] = "2026-11-29T00:00:00Z".into();
        }
        Presence::Present(Box::new(serde_json::from_value(object).unwrap()))
    };
    let node = serde_json::json!({"metadata": {"name": "node1", "labels": {"disk": "ssd"}}});
    let node: Node = serde_json::from_value(node).unwrap();
    let known = |uid, seen, deletion_seen| Known { uid, seen, deletion_seen };
    let own = known(Some("1"), true, false);
    // What is known, what the API server has, whether it shows the node; whether the agent's own DaemonSet is
    // gone, and the verdict.
    let rows = [
        ("there", own, found("1", false, "ssd"), true, false, Verdict::Keep),
        ("being deleted", own, found("1", true, "ssd"), true, true, Verdict::Deleted),
        ("deleted", own, Presence::Absent, true, true, Verdict::Deleted),
        (
            "deleted, after a restart",
            known(None, true, false),
            Presence::Absent,
            true,
            true,
            Verdict::Deleted,
        ),
        ("never seen", known(None, false, false), Presence::Absent, true, false, Verdict::Keep),
        ("no answer", own, Presence::Unknown, true, false, Verdict::Keep),
        (
            "no answer after the watch has shown the deletion",
            known(Some("1"), true, true),
            Presence::Unknown,
            true,
            true,
            Verdict::Deleted,
        ),
        ("made again, for this node too", own, found("2", false, "ssd"), true, true, Verdict::Keep),
        (
            "made again after the watch has shown the deletion",
            known(Some("1"), true, true),
            found("2", false, "ssd"),
            true,
            true,
            Verdict::Keep,
        ),
        ("made again, for other nodes", own, found("2", false, "hdd"), true, true, Verdict::Left),
        ("for other nodes now", own, found("1", false, "hdd"), true, false, Verdict::Left),
        ("for other nodes, the node unknown", own, found("1", false, "hdd"), false, false, Verdict::Keep),
        (
            "its own unknown, one is there",
            known(None, true, false),
            found("2", false, "ssd"),
            true,
            false,
            Verdict::Keep,
        ),
    ];
    for (name, known, presence, shown, gone, expected) in rows {
        assert_eq!(is_gone(known, &presence), gone, "{name}");
        assert_eq!(verdict(known, &presence, Some(&node).filter(|_| shown)), expected, "{name}");
    }
}
