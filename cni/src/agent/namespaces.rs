//! Finds pods' network namespaces among the processes of the node, by the pod's uid in their control group.
//!
//! Way in: [`find`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A process that belongs to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    /// In ticks since the system began: the pod's first process, the one that holds its sandbox, has the
    /// least. One that made itself another network namespace came later.
    started: u64,
    pid: u32,
}

/// The network namespaces of these pods (by uid), as far as processes of theirs are running. `proc` is
/// `/proc`.
pub(crate) fn find(proc: &Path, wanted: &[&str]) -> io::Result<BTreeMap<String, File>> {
    // Where it is hidden from us, that the API knows which pods use it has to do; ztunnel refuses it as well.
    let host = std::fs::metadata(proc.join("1/ns/net")).ok().map(|found| found.ino());
    let mut processes: BTreeMap<String, Vec<Process>> = BTreeMap::new();
    for entry in std::fs::read_dir(proc)? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(uid) = pod_of(proc, pid).filter(|uid| wanted.contains(&uid.as_str()))
            && let Some(started) = started(proc, pid)
        {
            processes.entry(uid).or_default().push(Process { started, pid });
        }
    }
    let mut found = BTreeMap::new();
    for (uid, mut of_pod) in processes {
        of_pod.sort();
        let mut namespaces = of_pod.iter().filter_map(|process| open(proc, process, &uid, host));
        if let Some(namespace) = namespaces.next() {
            found.insert(uid, namespace);
        }
    }
    Ok(found)
}

/// The process's network namespace, if it is the pod's and not the host's, and the process still the same.
fn open(proc: &Path, process: &Process, uid: &str, host: Option<u64>) -> Option<File> {
    let file = File::open(folder(proc, process.pid).join("ns/net"))
        .inspect_err(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                tracing::warn!(pid = process.pid, pod = uid, %error, "opening a pod's network namespace (needs CAP_SYS_PTRACE)");
            }
        })
        .ok()?;
    let same = started(proc, process.pid) == Some(process.started)
        && pod_of(proc, process.pid).as_deref() == Some(uid);
    let own = file.metadata().is_ok_and(|found| Some(found.ino()) != host);
    (same && own).then_some(file)
}

fn pod_of(proc: &Path, pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(folder(proc, pid).join("cgroup")).ok()?;
    text.lines().find_map(pod_uid)
}

/// The pod that a line of `/proc/PID/cgroup` (`ID:CONTROLLERS:PATH`, of either version) names. The outermost
/// counts: what a container makes within its own group is its own affair.
fn pod_uid(line: &str) -> Option<String> {
    let path = line.splitn(3, ':').nth(2)?;
    path.split('/').find_map(segment_uid)
}

/// `pod<uid>` as the cgroupfs driver writes it; `kubepods-besteffort-pod<uid>.slice`, with underscores, as
/// systemd's.
fn segment_uid(segment: &str) -> Option<String> {
    if let Some(uid) = segment.strip_prefix("pod") {
        return is_uid(uid).then(|| uid.to_owned());
    }
    let unit = segment.strip_suffix(".slice")?;
    let (parents, uid) = unit.rsplit_once("-pod")?;
    let uid = uid.replace('_', "-");
    (parents.contains("kubepods") && is_uid(&uid)).then_some(uid)
}

/// Pods' uids are UUIDs; those of static pods lack the dashes.
fn is_uid(text: &str) -> bool {
    matches!(text.len(), 32 | 36) && text.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-')
}

/// Field 22 of `/proc/PID/stat`. The second is the command's name in parentheses and may hold anything.
fn started(proc: &Path, pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(folder(proc, pid).join("stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

fn folder(proc: &Path, pid: u32) -> PathBuf {
    proc.join(pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b2f6c1e-8f0a-4f5e-9d63-2f6d1f0c9a11";
    const STATIC: &str = "f1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6";

    #[test]
    fn groups_name_their_pods() {
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
            (
                "another pod's name within its own",
                format!("0::/kubepods/pod{dashed}/1/pod{STATIC}"),
                Some(UID),
            ),
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
    fn the_sandbox_of_a_pod_is_found() {
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
}
