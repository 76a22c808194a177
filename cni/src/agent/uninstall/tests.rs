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
    Installation { layout: layout.clone(), entry, credential }.pass().unwrap();
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
