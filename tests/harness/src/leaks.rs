//! What of an instance is in the kernel: programs, links and maps, by their numbers, which are not used again
//! soon.
//!
//! Taken before `detach`, looked at after it. Other instances on the machine are not counted.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::sys::{Bpf, bpf_by_id, bpf_info, bpf_pinned};
use crate::wait;

/// Kernel objects of one instance.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub programs: BTreeSet<u32>,
    pub links: BTreeSet<u32>,
    pub maps: BTreeSet<u32>,
}

impl Objects {
    /// Everything pinned below a directory, and the programs behind its links.
    pub fn pinned(dir: &Path) -> Result<Self> {
        let mut found = Self::default();
        for path in files(dir)? {
            let name = CString::new(path.as_os_str().as_bytes())?;
            let object = bpf_pinned(&name).with_context(|| format!("failed to open {}", path.display()))?;
            found.add(&object).with_context(|| format!("failed to inspect {}", path.display()))?;
        }
        Ok(found)
    }

    fn add(&mut self, object: &OwnedFd) -> Result<()> {
        let info = bpf_info(object.as_fd())?;
        let kind = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(object)))?;
        match kind.to_string_lossy().as_ref() {
            // struct bpf_link_info: type, id, prog_id.
            // Its name has changed between kernels.
            "anon_inode:bpf-link" | "anon_inode:bpf_link" | "anon_inode:[bpf_link]" => {
                self.links.insert(info[1]);
                self.programs.insert(info[2]);
            }
            // struct bpf_map_info and bpf_prog_info: type, id.
            "anon_inode:bpf-map" => drop(self.maps.insert(info[1])),
            "anon_inode:bpf-prog" => drop(self.programs.insert(info[1])),
            other => bail!("an object of an unknown kind: {other}"),
        }
        Ok(())
    }

    /// Which of them are still in the kernel.
    #[must_use]
    pub fn alive(&self) -> Self {
        let left = |kind: Bpf, ids: &BTreeSet<u32>| {
            ids.iter().copied().filter(|id| bpf_by_id(kind, *id).is_ok()).collect()
        };
        Self {
            programs: left(Bpf::ProgramFdById, &self.programs),
            links: left(Bpf::LinkFdById, &self.links),
            maps: left(Bpf::MapFdById, &self.maps),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.links.is_empty() && self.maps.is_empty()
    }

    /// Waits until none of them is in the kernel any more: it frees them a little after the last use.
    pub fn gone(&self) -> Result<()> {
        wait::eventually("programs, links and maps are gone", || {
            let alive = self.alive();
            ensure!(alive.is_empty(), "left: {alive:?}");
            Ok(())
        })
    }
}

/// All files below a directory; none when it does not exist.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(found) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}
