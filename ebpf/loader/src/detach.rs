//! Removing an instance: its links, its maps, its pins.

use std::fs;
use std::io;
use std::path::Path;

use ambit_abi::{Daemon, names};

use crate::pins::{self, entries};
use crate::{Error, Settings, bpf};

/// Removes an instance, whichever version pinned it and whether or not a daemon still runs: its programs stop
/// at once. An instance that does not exist is no error.
pub fn detach(settings: &Settings) -> Result<(), Error> {
    let folder = pins::instance(settings);
    let versions = match fs::read_dir(&folder) {
        Ok(versions) => versions,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Pin { operation: "list directory", path: folder, source }),
    };
    for version in versions {
        let version = version
            .map_err(|source| Error::Pin { operation: "list directory", path: folder.clone(), source })?
            .path();
        let _lock = pins::lock(&version)?;
        stop_upkeep(&version);
        remove_version(&version)?;
    }
    remove_folder(&folder)
}

/// Removes the pins of one version, whose lock the caller holds.
pub(crate) fn remove_version(version: &Path) -> Result<(), Error> {
    // Links first, so that no program runs while only some of its maps are pinned.
    let (links, maps): (Vec<_>, Vec<_>) =
        entries(version)?.into_iter().partition(|entry| entry.name().contains('-'));
    links.iter().try_for_each(pins::Link::remove)?;
    maps.iter().try_for_each(pins::Link::unpin)?;
    remove_folder(version)
}

/// Tells a daemon that still runs that nothing is to be put right any more: as far as it knows, a newer one
/// lives for ever.
fn stop_upkeep(version: &Path) {
    let daemon = Daemon { number: u64::MAX, at: u64::MAX };
    if let Ok(map) = bpf::open_pin(&version.join(names::DAEMON)) {
        // An older version's map may be another; then there is no such daemon either.
        let _ = bpf::update(&map, &0_u32, &daemon, bpf::Update::Any);
    }
}

fn remove_folder(folder: &Path) -> Result<(), Error> {
    fs::remove_dir(folder).map_err(|source| Error::Pin {
        operation: "remove directory",
        path: folder.to_owned(),
        source,
    })
}
