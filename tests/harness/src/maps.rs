//! How full an instance's maps are, read from their pins rather than from the daemon.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::leaks::files;
use crate::sys::{bpf_delete, bpf_info, bpf_next_key, bpf_pinned};

/// `BPF_MAP_TYPE_HASH`: the kinds of maps that a flood could fill.
const HASH: u32 = 1;

/// The number of entries of every hash map pinned below a directory.
pub(crate) fn entries(dir: &Path) -> Result<BTreeMap<String, usize>> {
    let mut found = BTreeMap::new();
    for path in files(dir)? {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let object = bpf_pinned(&name).with_context(|| format!("failed to open {}", path.display()))?;
        let kind = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&object)))?;
        if kind.to_string_lossy() != "anon_inode:bpf-map" {
            continue;
        }
        // struct bpf_map_info: type, id, key_size, value_size, max_entries.
        let info = bpf_info(object.as_fd())?;
        if info[0] != HASH {
            continue;
        }
        let (key_size, most) = (usize::try_from(info[2])?, usize::try_from(info[4])?);
        let count = count(object.as_fd(), key_size, most)
            .with_context(|| format!("failed to count the entries of {}", path.display()))?;
        let name = path.file_name().context("a pin without a name")?.to_string_lossy().into_owned();
        ensure!(found.insert(name.clone(), count).is_none(), "two maps are named {name}");
    }
    Ok(found)
}

/// Removes every entry of a pinned map, as somebody with root could; returns how many there were.
pub(crate) fn clear(path: &Path) -> Result<usize> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let object = bpf_pinned(&name).with_context(|| format!("failed to open {}", path.display()))?;
    let mut key = vec![0; usize::try_from(bpf_info(object.as_fd())?[2])?];
    let mut removed = 0;
    while bpf_next_key(object.as_fd(), None, &mut key)? {
        bpf_delete(object.as_fd(), &key).with_context(|| format!("failed to clear {}", path.display()))?;
        removed += 1;
    }
    Ok(removed)
}

fn count(map: std::os::fd::BorrowedFd<'_>, key_size: usize, most: usize) -> Result<usize> {
    let mut key = vec![0; key_size];
    let mut next = vec![0; key_size];
    let mut count = 0;
    let mut more = bpf_next_key(map, None, &mut key)?;
    while more {
        count += 1;
        // A map that changes meanwhile may lead back to its beginning.
        ensure!(count <= most, "more entries than it can have");
        more = bpf_next_key(map, Some(&key), &mut next)?;
        std::mem::swap(&mut key, &mut next);
    }
    Ok(count)
}
