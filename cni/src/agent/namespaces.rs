//! Finds pods' network namespaces among the processes of the node, by the pod's uid in their control group.
//!
//! Entry point: [`find`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A process that belongs to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    /// Clock ticks since boot. The pod's first process holds its sandbox; processes that unshared their
    /// network namespace started later.
    started: u64,
    pid: u32,
}

/// The network namespaces of the pods with these uids that have running processes. `proc` is `/proc`.
pub(crate) fn find(proc: &Path, wanted: &[&str]) -> io::Result<BTreeMap<String, File>> {
    // If it is not readable, the API's `hostNetwork` has to do; ztunnel refuses the host's namespace as well.
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
                let pid = process.pid;
                tracing::warn!(pid, uid, %error,
                    "failed to open a pod's network namespace (needs CAP_SYS_PTRACE)");
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

/// The pod that a line of `/proc/PID/cgroup` (`ID:CONTROLLERS:PATH`, cgroup v1 or v2) names. The outermost
/// counts: containers may create groups of any name within their own.
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

/// Uids of pods are UUIDs; those of static pods have no dashes.
fn is_uid(text: &str) -> bool {
    matches!(text.len(), 32 | 36) && text.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-')
}

/// Field 22 of `/proc/PID/stat`. Field 2 is the command's name in parentheses, which may hold any character.
fn started(proc: &Path, pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(folder(proc, pid).join("stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

fn folder(proc: &Path, pid: u32) -> PathBuf {
    proc.join(pid.to_string())
}

#[cfg(test)]
mod tests;
