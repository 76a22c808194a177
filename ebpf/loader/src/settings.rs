//! Where an instance of Ambit lives on this kernel.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::Error;

/// What [`Dataplane::open`](crate::Dataplane::open) and [`detach`](crate::detach) need to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which instance: several share one kernel without disturbing each other.
    pub instance: InstanceName,
    /// A directory in a mounted BPF filesystem.
    pub bpffs: PathBuf,
    /// The cgroup v2 whose processes are concerned; by default the root, which is every process.
    pub cgroup: Option<PathBuf>,
}

impl Settings {
    /// The cgroup's directory.
    pub(crate) fn cgroup(&self) -> Result<PathBuf, Error> {
        if let Some(path) = &self.cgroup {
            // In a container the host's /sys/fs/cgroup is mounted whole; beside version 1 it holds version 2
            // in a folder.
            let beside = path.join("unified");
            let is_cgroup2 = |path: &Path| path.join("cgroup.controllers").exists();
            return Ok(if !is_cgroup2(path) && is_cgroup2(&beside) { beside } else { path.clone() });
        }
        // Its place differs: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside version 1.
        let mounts = fs::read_to_string("/proc/mounts").map_err(Error::Mounts)?;
        cgroup2(&mounts).ok_or_else(|| Error::Mounts(io::Error::from(io::ErrorKind::NotFound)))
    }
}

/// The first mount of the cgroup v2 hierarchy.
fn cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let place = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(place.replace("\\040", " ")))
    })
}

/// Names an instance: 1 to 32 of `a`–`z`, `0`–`9` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceName(Box<str>);

impl InstanceName {
    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text is not an instance name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an instance name: 1 to 32 lower-case letters, digits and '-'")]
pub struct InstanceNameError(String);

impl FromStr for InstanceName {
    type Err = InstanceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || text.len() > 32 || !text.bytes().all(valid) {
            return Err(InstanceNameError(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_names() {
        let rows = [
            ("plain", "node-a1", true),
            ("longest", "a23456789012345678901234567890bc", true),
            ("too long", "a23456789012345678901234567890bcd", false),
            ("empty", "", false),
            ("would leave its folder", "..", false),
            ("a path", "a/b", false),
            ("upper case", "Node", false),
        ];
        for (name, text, valid) in rows {
            assert_eq!(text.parse::<InstanceName>().is_ok(), valid, "{name}");
        }
    }

    #[test]
    fn cgroup_mounts() {
        let beside = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncg2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let rows = [
            ("beside version 1", beside, Some("/sys/fs/cgroup/unified")),
            (
                "alone",
                "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
                Some("/sys/fs/cgroup"),
            ),
            ("a place with a space", "cgroup2 /a\\040b cgroup2 rw 0 0\n", Some("/a b")),
            ("none", "proc /proc proc rw 0 0\n", None),
        ];
        for (name, mounts, expected) in rows {
            assert_eq!(cgroup2(mounts), expected.map(PathBuf::from), "{name}");
        }
    }
}
