//! The directory of an instance's pins, and its lock.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ambit_abi::{NetnsCookie, VERSION, names};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{FsType, statfs};

use crate::{Error, Settings, bpf};

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The pins of one instance and interface version.
#[derive(Debug)]
pub(crate) struct Pins {
    folder: PathBuf,
}

/// Held while pins or attachments change. Another daemon of the instance waits.
pub(crate) type Lock = Flock<fs::File>;

impl Pins {
    /// The directory for this build's version, created if it does not exist.
    pub(crate) fn create(settings: &Settings) -> Result<Self, Error> {
        let kind = statfs(&settings.bpffs).map_err(|error| Error::Pin {
            operation: "read the filesystem type of",
            path: settings.bpffs.clone(),
            source: error.into(),
        })?;
        if kind.filesystem_type() != FsType(BPF_FS_MAGIC) {
            return Err(Error::NotBpffs(settings.bpffs.clone()));
        }
        let folder = instance(settings).join(format!("v{VERSION}"));
        create(&folder)?;
        Ok(Self { folder })
    }

    /// The pins in a version's directory.
    pub(crate) fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Makes the directory again, if it was removed.
    pub(crate) fn create_again(&self) -> Result<(), Error> {
        create(&self.folder)
    }

    /// The path of a pin.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Takes the directory's lock.
    pub(crate) fn lock(&self) -> Result<Lock, Error> {
        lock(&self.folder)
    }

    /// Links whose names are this prefix and an object's hash.
    pub(crate) fn links(&self, prefix: &str) -> Result<Vec<Link>, Error> {
        let mut links = entries(&self.folder)?;
        links.retain(|link| {
            link.name().strip_prefix(prefix).is_some_and(|rest| {
                rest.strip_prefix('-').is_some_and(|hash| !hash.is_empty() && !hash.contains('-'))
            })
        });
        Ok(links)
    }

    /// Every link.
    pub(crate) fn all_links(&self) -> Result<Vec<Link>, Error> {
        let mut links = entries(&self.folder)?;
        links.retain(|link| link.name().contains('-'));
        Ok(links)
    }

    /// Removes a map's pin, if there is one.
    pub(crate) fn unpin(&self, name: &str) -> Result<(), Error> {
        Link { path: self.path(name) }.unpin()
    }

    /// Whether every map is pinned.
    pub(crate) fn has_all_maps(&self) -> bool {
        names::MAPS.iter().all(|name| self.path(name).exists())
    }
}

fn create(folder: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|source| Error::Pin {
        operation: "create directory",
        path: folder.to_owned(),
        source,
    })
}

/// The prefix of the name of a pod's link.
pub(crate) fn inbound_link(netns: NetnsCookie) -> String {
    format!("{}-{netns}", names::INBOUND_PROGRAM)
}

/// The prefix of the name of a link of an interface at the node's end of a pod's link.
pub(crate) fn link_program(program: &str, interface: u32) -> String {
    format!("{program}-{interface}")
}

/// The directory of an instance.
pub(crate) fn instance(settings: &Settings) -> PathBuf {
    settings.bpffs.join(settings.instance.as_str())
}

/// Takes the lock of a directory.
pub(crate) fn lock(folder: &Path) -> Result<Lock, Error> {
    let error = |source| Error::Pin { operation: "lock directory", path: folder.to_owned(), source };
    let directory = fs::File::open(folder).map_err(error)?;
    Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, errno)| error(errno.into()))
}

/// The pins in a directory.
pub(crate) fn entries(folder: &Path) -> Result<Vec<Link>, Error> {
    let error = |source| Error::Pin { operation: "list directory", path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(error)? {
        found.push(Link { path: entry.map_err(error)?.path() });
    }
    Ok(found)
}

/// A pinned link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) path: PathBuf,
}

impl Link {
    /// The name of its file.
    pub(crate) fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Whether its program is of the object with this hash.
    pub(crate) fn is_of(&self, hash: &str) -> bool {
        self.name().rsplit_once('-').is_some_and(|(_, of)| of == hash)
    }

    /// Detaches its program at once, and removes the pin.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        match bpf::open_pin(&self.path) {
            // Its cgroup or network namespace may be gone already.
            Ok(link) => drop(bpf::detach_link(&link)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => {}
        }
        self.unpin()
    }

    /// Removes the pin, if it is still there.
    pub(crate) fn unpin(&self) -> Result<(), Error> {
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Pin { operation: "remove pin", path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }
}
