//! What older versions of the interface left on this kernel. Their programs go on serving the pods that this
//! version has not taken over, and the connections that they track; a pod is captured by one version only.
//!
//! Entry points: [`release`], when a pod is taken over, and [`remove_unused`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ambit_abi::{NetnsCookie, VERSION, names};

use crate::pins::{self, Pins, inbound_link};
use crate::{Error, Settings, bpf, detach};

/// The folders of the versions before this one.
fn versions(settings: &Settings) -> Result<Vec<PathBuf>, Error> {
    let folder = pins::instance(settings);
    let failed = |source| Error::Pin { operation: "list directory", path: folder.clone(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name
            .strip_prefix('v')
            .and_then(|version| version.parse::<u32>().ok())
            .is_some_and(|it| it < VERSION)
        {
            found.push(path);
        }
    }
    Ok(found)
}

/// Takes a pod from the older versions: their programs do nothing for it any more. Called when this version's
/// serve it, so that it is never without.
pub(crate) fn release(settings: &Settings, cookie: NetnsCookie) -> Result<(), Error> {
    for version in versions(settings)? {
        let _lock = pins::lock(&version)?;
        // Every version's key is the cookie.
        let path = version.join(names::PODS);
        let failed = |source| Error::Pin { operation: "open map", path: path.clone(), source };
        let Some(pods) = opened(&path).map_err(failed)? else { continue };
        bpf::delete(&pods, &cookie).map_err(|source| Error::Map {
            operation: "remove from",
            map: names::PODS,
            source,
        })?;
        for link in Pins::of(&version).links(&inbound_link(cookie))? {
            link.remove()?;
        }
    }
    Ok(())
}

/// Removes the older versions that serve no pod and track no connection any more; returns how many.
pub(crate) fn remove_unused(settings: &Settings) -> Result<usize, Error> {
    let mut removed = 0;
    for version in versions(settings)? {
        let lock = pins::lock(&version)?;
        if is_empty(&version.join(names::PODS))? && is_empty(&version.join(names::FLOWS))? {
            detach::remove_version(&version)?;
            tracing::info!(path = %version.display(), "programs of an older version removed");
            removed += 1;
        }
        drop(lock);
    }
    Ok(removed)
}

fn opened(path: &Path) -> io::Result<Option<std::os::fd::OwnedFd>> {
    match bpf::open_pin(path) {
        Ok(map) => Ok(Some(map)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a map has no entry, or is not there.
fn is_empty(path: &Path) -> Result<bool, Error> {
    let failed = |source| Error::Pin { operation: "read map", path: path.to_owned(), source };
    let Some(map) = opened(path).map_err(failed)? else { return Ok(true) };
    // The first key alone: larger than any map's.
    let key = bpf::next_key::<[u8; 256]>(&map, None).map_err(failed)?;
    Ok(key.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_earlier_versions_are_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let instance = "test".parse().expect("a name");
        let settings = Settings { instance, bpffs: folder.path().to_owned(), cgroup: None, object: None };
        for name in ["v1", "v2", "vx", "other", &format!("v{VERSION}"), &format!("v{}", VERSION + 1)] {
            fs::create_dir_all(folder.path().join("test").join(name)).expect("a folder");
        }
        let mut found = versions(&settings).expect("listed");
        found.sort();
        let expected: Vec<PathBuf> =
            (1..VERSION).map(|version| folder.path().join(format!("test/v{version}"))).collect();
        assert_eq!(found.iter().take(2).collect::<Vec<_>>(), expected.iter().take(2).collect::<Vec<_>>());
        assert!(!found.iter().any(|path| path.ends_with(format!("v{VERSION}"))));
    }
}
