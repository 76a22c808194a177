//! Removing an instance: its links, its maps, its pins.

use std::fs;
use std::io;
use std::path::Path;

use crate::pins::{self, entries};
use crate::{Error, Settings};

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
        // Links first, so that no program runs while only some of its maps are pinned.
        let (links, maps): (Vec<_>, Vec<_>) =
            entries(&version)?.into_iter().partition(|entry| entry.name().contains('-'));
        links.iter().try_for_each(pins::Link::remove)?;
        maps.iter().try_for_each(pins::Link::unpin)?;
        remove_folder(&version)?;
    }
    remove_folder(&folder)
}

fn remove_folder(folder: &Path) -> Result<(), Error> {
    fs::remove_dir(folder).map_err(|source| Error::Pin {
        operation: "remove directory",
        path: folder.to_owned(),
        source,
    })
}
