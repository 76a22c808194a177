//! The installation in folders that other tools change.

use std::fs;

use super::*;

/// A host's folders.
pub(crate) struct Host {
    _root: tempfile::TempDir,
    pub(crate) installation: Installation,
}

const LIST: &str = "{\n  \"name\": \"lab\",\n  \"plugins\": [\n    {\"type\": \"bridge\"}\n  ]\n}\n";
const SINGLE: &str = "{\"cniVersion\": \"0.3.1\", \"name\": \"s\", \"type\": \"flannel\"}\n";

impl Host {
    pub(crate) fn new(configurations: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for folder in ["bin", "conf"] {
            fs::create_dir(path(folder)).unwrap();
        }
        fs::write(path("ambit-cni"), "#!binary").unwrap();
        let layout = Layout { source: path("ambit-cni"), bin_dir: path("bin"), conf_dir: path("conf") };
        let entry = Entry {
            kind: PLUGIN.to_owned(),
            kubeconfig: "/etc/cni/net.d/ambit-cni.kubeconfig".into(),
            socket: "/run/ambit/enrol.sock".into(),
            cluster: "Kubernetes".to_owned(),
            excluded_namespaces: vec!["ambit-system".to_owned()],
            log_file: None,
            wraps_conf: false,
        };
        let mut installation = Installation::new(layout, entry);
        installation.credential = Some("credential".to_owned());
        let host = Self { _root: root, installation };
        for (name, text) in configurations {
            host.write(name, text);
        }
        host
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.installation.layout.conf_dir.join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.installation.layout.conf_dir.join(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.installation.layout.conf_dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub(crate) fn has_entry(&self, name: &str) -> bool {
        self.read(name).contains("\"ambit-cni\"")
    }

    fn pass(&self) -> Vec<&'static str> {
        self.installation.pass().unwrap()
    }
}

/// A name, what happens, what is mended.
type Damage = (&'static str, fn(&Host), &'static [&'static str]);

#[test]
fn installed_once_and_repaired_after_others_overwrite_it() {
    let host = Host::new(&[("10-lab.conflist", LIST), ("99-loopback.conf", r#"{"type":"loopback"}"#)]);
    assert_eq!(host.pass(), ["binary", "credential", "configuration"]);
    assert_eq!(host.pass(), Vec::<&str>::new(), "nothing is left to do");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&host.installation.layout.binary()), 0o755);
    assert_eq!(mode(&host.installation.layout.kubeconfig()), 0o600);
    assert!(host.has_entry("10-lab.conflist") && !host.has_entry("99-loopback.conf"));
    let rows: [Damage; 5] = [
        ("the list is written again", |host| host.write("10-lab.conflist", LIST), &["configuration"]),
        ("the credential is changed", |host| host.write(KUBECONFIG, "x"), &["credential"]),
        (
            "the credential is opened to others",
            |host| {
                let path = host.installation.layout.kubeconfig();
                fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
            },
            &["credential"],
        ),
        (
            "the binary is gone",
            |host| fs::remove_file(host.installation.layout.binary()).unwrap(),
            &["binary"],
        ),
        (
            "the binary is another",
            |host| fs::write(host.installation.layout.binary(), "old").unwrap(),
            &["binary"],
        ),
    ];
    for (name, damage, expected) in rows {
        damage(&host);
        assert_eq!(host.pass(), expected, "{name}");
        assert_eq!(host.pass(), Vec::<&str>::new(), "{name}: again");
    }
}

#[test]
fn the_entry_moves_to_a_new_primary_configuration() {
    let host = Host::new(&[("10-lab.conflist", LIST)]);
    host.pass();
    host.write("05-new.conflist", r#"{"name":"new","plugins":[{"type":"ptp"}]}"#);
    assert_eq!(host.pass(), ["configuration", "former configuration"]);
    assert!(host.has_entry("05-new.conflist"));
    assert_eq!(host.read("10-lab.conflist"), LIST);
}

#[test]
fn a_single_file_becomes_a_list() {
    let host = Host::new(&[("10-s.conf", SINGLE)]);
    let path = host.installation.layout.conf_dir.join("10-s.conf");
    fs::set_permissions(path, Permissions::from_mode(0o640)).unwrap();
    host.pass();
    assert_eq!(host.names(), ["10-s.conflist", KUBECONFIG]);
    let mode =
        fs::metadata(host.installation.layout.conf_dir.join("10-s.conflist")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640, "as readable as it was");
    // Its owner writes it again.
    host.write("10-s.conf", SINGLE);
    assert_eq!(host.pass(), ["configuration"]);
    assert_eq!(host.names(), ["10-s.conflist", KUBECONFIG]);
    assert!(remove(&host.installation.layout).is_empty());
    assert_eq!(host.names(), ["10-s.conf"]);
    assert_eq!(host.read("10-s.conf"), SINGLE);
}

#[test]
fn other_files_are_left_unchanged() {
    let host = Host::new(&[("00-broken.conflist", "{"), ("01-readme.txt", "x"), ("10-lab.conflist", LIST)]);
    host.pass();
    assert_eq!((host.read("00-broken.conflist"), host.read("01-readme.txt")), ("{".into(), "x".into()));
    assert!(host.has_entry("10-lab.conflist"));
}

#[test]
fn missing_parts_are_named() {
    let mut host = Host::new(&[]);
    let error = host.installation.pass().unwrap_err().to_string();
    assert!(error.contains("waiting for a CNI configuration in"), "{error}");
    host.installation.credential = None;
    let error = host.installation.pass().unwrap_err().to_string();
    assert_eq!(error, "waiting for the CNI credential");
    // Without a credential every pod would wait: the runtime gets no entry yet.
    host.write("10-lab.conflist", LIST);
    host.installation.pass().unwrap_err();
    assert!(!host.has_entry("10-lab.conflist"));
}

#[test]
fn removal_restores_the_original_files() {
    let host = Host::new(&[("10-lab.conflist", LIST), ("20-other.conflist", LIST)]);
    host.pass();
    assert!(remove(&host.installation.layout).is_empty());
    assert_eq!(host.names(), ["10-lab.conflist", "20-other.conflist"]);
    assert_eq!((host.read("10-lab.conflist"), host.read("20-other.conflist")), (LIST.into(), LIST.into()));
    assert_eq!(fs::read_dir(&host.installation.layout.bin_dir).unwrap().count(), 0);
    assert!(remove(&host.installation.layout).is_empty(), "again");
}
