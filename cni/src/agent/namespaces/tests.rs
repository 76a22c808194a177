use super::*;

const UID: &str = "0b2f6c1e-8f0a-4f5e-9d63-2f6d1f0c9a11";
const STATIC: &str = "f1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6";

#[test]
fn pod_uids_of_cgroup_paths() {
    let dashed = UID;
    let underlined = UID.replace('-', "_");
    let rows = [
        ("cgroupfs, v1", format!("4:memory:/kubepods/burstable/pod{dashed}/0123abcd"), Some(UID)),
        ("cgroupfs, v2", format!("0::/kubepods/besteffort/pod{dashed}/0123abcd"), Some(UID)),
        ("guaranteed", format!("0::/kubepods/pod{dashed}/0123abcd"), Some(UID)),
        ("a root of its own", format!("9:pids:/node1/kubepods/besteffort/pod{dashed}/x"), Some(UID)),
        (
            "systemd, v2",
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{underlined}.slice/\
                 cri-containerd-1.scope"
            ),
            Some(UID),
        ),
        (
            "systemd, v1",
            format!("1:name=systemd:/kubepods.slice/kubepods-pod{underlined}.slice/crio-1.scope"),
            Some(UID),
        ),
        (
            "systemd within a container",
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable-pod{underlined}.\
                 slice/x"
            ),
            Some(UID),
        ),
        ("a static pod", format!("0::/kubepods/burstable/pod{STATIC}/x"), Some(STATIC)),
        ("not a pod", "0::/system.slice/containerd.service".to_owned(), None),
        ("no uid", "0::/kubepods/podman/x".to_owned(), None),
        ("too short", "0::/kubepods/pod0123/x".to_owned(), None),
        ("another's slice", format!("0::/user-pod{underlined}.slice"), None),
        ("another pod's name within its own", format!("0::/kubepods/pod{dashed}/1/pod{STATIC}"), Some(UID)),
        ("no path", "garbage".to_owned(), None),
    ];
    for (name, line, expected) in rows {
        assert_eq!(pod_uid(&line).as_deref(), expected, "{name}: {line}");
    }
}

/// A process of a folder that looks like `/proc`; `namespace` is a file that stands for its network
/// namespace.
fn process(proc: &Path, pid: u32, group: &str, started: u64, namespace: &Path) {
    let folder = folder(proc, pid);
    std::fs::create_dir_all(folder.join("ns")).unwrap();
    std::fs::write(folder.join("cgroup"), format!("0::{group}\n")).unwrap();
    let between = "0 ".repeat(18);
    std::fs::write(folder.join("stat"), format!("{pid} (a) b) S {between}{started} 0 0\n")).unwrap();
    std::os::unix::fs::symlink(namespace, folder.join("ns/net")).unwrap();
}

#[test]
fn the_namespace_of_the_first_process_of_a_pod_is_found() {
    let root = tempfile::tempdir().unwrap();
    let namespace = |name: &str| {
        let path = root.path().join(name);
        std::fs::write(&path, name).unwrap();
        path
    };
    let proc = root.path().join("proc");
    let (host, pod, nested, other) =
        (namespace("host"), namespace("pod"), namespace("nested"), namespace("other"));
    let group = format!("/kubepods/pod{UID}/c");
    process(&proc, 1, "/init.scope", 1, &host);
    // The runtime's shim, in the pod's group and the host's namespace.
    process(&proc, 40, &group, 10, &host);
    process(&proc, 50, &group, 20, &pod);
    // A lower number, but later: numbers wrap around.
    process(&proc, 30, &group, 90, &nested);
    process(&proc, 60, &format!("/kubepods/pod{STATIC}/c"), 5, &other);
    process(&proc, 70, "/system.slice/x", 5, &other);
    std::fs::create_dir(proc.join("sys")).unwrap();
    let found = find(&proc, &[UID, "missing"]).unwrap();
    let names: Vec<_> =
        found.into_iter().map(|(uid, file)| (uid, io::read_to_string(file).unwrap())).collect();
    assert_eq!(names, [(UID.to_owned(), "pod".to_owned())]);
    std::fs::remove_dir_all(proc.join("1")).unwrap();
    assert_eq!(find(&proc, &[UID]).unwrap().len(), 1, "where the host's is hidden");
    assert!(find(&root.path().join("none"), &[UID]).is_err());
}
