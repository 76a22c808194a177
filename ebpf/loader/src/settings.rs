//! An instance's name and its places in the file system.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::Error;

/// Settings of [`Dataplane::open`](crate::Dataplane::open) and [`detach`](crate::detach).
#[derive(Clone, Debug)]
pub struct Settings {
    /// The instance's name. Several instances share one kernel without affecting each other.
    pub instance: InstanceName,
    /// A directory in a mounted BPF filesystem.
    pub bpffs: PathBuf,
    /// The cgroup v2 whose processes' connections are captured; by default the root, which has every process.
    pub cgroup: Option<PathBuf>,
    /// An object file in place of the embedded one, such as the one that logs (`cargo xtask ebpf --log`).
    pub object: Option<PathBuf>,
}

impl Settings {
    /// The cgroup's directory.
    pub(crate) fn cgroup(&self) -> Result<PathBuf, Error> {
        if let Some(path) = &self.cgroup {
            // In a container the host's /sys/fs/cgroup is mounted as a whole. In hybrid mode cgroup v2 is its
            // subdirectory `unified`.
            let beside = path.join("unified");
            let is_cgroup2 = |path: &Path| path.join("cgroup.controllers").exists();
            return Ok(if !is_cgroup2(path) && is_cgroup2(&beside) { beside } else { path.clone() });
        }
        // At /sys/fs/cgroup, or in hybrid mode at /sys/fs/cgroup/unified.
        let mounts = fs::read_to_string("/proc/mounts").map_err(Error::Mounts)?;
        cgroup2(&mounts).ok_or_else(|| Error::Mounts(io::Error::from(io::ErrorKind::NotFound)))
    }
}

/// The first mount of the cgroup v2 hierarchy.
fn cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let target = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(target.replace("\\040", " ")))
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

/// The text is not an instance name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instance name {0:?}: must be 1 to 32 lower-case letters, digits and '-'")]
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
mod tests;
