//! The state folder: what must survive a restart, each file written whole or not at all. Way in: [`Folder`].
//!
//! | file | mode | holds |
//! |---|---|---|
//! | `ca.pem` | 0600 | the root certificate and its key, in one file so that they cannot part |
//! | `token.key` | 0600 | the key that signs the nodes' tokens |
//! | `good/` | 0700 | the last good version of every object file |
//! | `addresses.json` | 0644 | where the running controller listens |
//! | `lock` | 0600 | held while `ca.pem` and `token.key` are made |

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// A secret is never as large as this; something else has taken its place.
const LARGEST_SECRET: u64 = 64 * 1024;

/// What went wrong in the state folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{} may be read or written by others than its owner (mode {mode:04o}); run: chmod 600 {}",
        path.display(),
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} belongs to user {owner}, not to the user who runs this", path.display())]
    Foreign { path: PathBuf, owner: u32 },
    #[error("{} is not a secret's file: {size} bytes", path.display())]
    Oversized { path: PathBuf, size: u64 },
}

/// Keeps the operation and the path with an input/output error.
pub(crate) fn context(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { operation, path, source }
}

/// The state folder of one controller.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens it, making it if it is not there.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        make_private(path)?;
        Ok(Self { path: path.to_owned() })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Waits for the lock under which secrets are made: `controller bootstrap` may run beside `controller
    /// run`.
    pub(crate) fn lock(&self) -> Result<Flock<File>, Error> {
        let path = self.path("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(context("opening", &path))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| context("locking", &path)(errno.into()))
    }

    /// A secret, if it is there. One that others could have read or written is refused.
    pub(crate) fn read_secret(&self, name: &str) -> Result<Option<String>, Error> {
        let path = self.path(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(context("opening", &path)(error)),
        };
        let metadata = file.metadata().map_err(context("examining", &path))?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(Error::Exposed { path, mode });
        }
        if metadata.uid() != nix::unistd::geteuid().as_raw() {
            return Err(Error::Foreign { path, owner: metadata.uid() });
        }
        if metadata.len() > LARGEST_SECRET {
            return Err(Error::Oversized { path, size: metadata.len() });
        }
        let mut text = String::new();
        file.take(LARGEST_SECRET).read_to_string(&mut text).map_err(context("reading", &path))?;
        Ok(Some(text))
    }

    /// Writes a secret: mode 0600 from its first byte on.
    pub(crate) fn write_secret(&self, name: &str, content: &str) -> Result<(), Error> {
        write_atomically(&self.path(name), content.as_bytes(), 0o600)
    }

    /// Writes what everyone may read.
    pub(crate) fn write_public(&self, name: &str, content: &str) -> Result<(), Error> {
        write_atomically(&self.path(name), content.as_bytes(), 0o644)
    }

    /// Removes a file; one that is not there is fine.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        remove(&self.path(name))
    }
}

/// Makes a folder, and those above it, that only the owner may enter.
pub(crate) fn make_private(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(context("creating", path))
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(context("removing", path)(error)),
        _ => Ok(()),
    }
}

/// Writes a file so that a crash of the process leaves the old content or the new, never a part; but a crash
/// of the machine may leave neither.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    replace_with(path, |temporary| write_new(temporary, content, mode).map(drop))
}

/// Writes a file so that a crash at any moment leaves the old content or the new, never a part.
fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    replace_with(path, |temporary| {
        let file = write_new(temporary, content, mode)?;
        file.sync_all().map_err(context("writing", temporary))
    })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(context("syncing", folder))
}

fn replace_with(path: &Path, write: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    remove(&temporary)?;
    let written =
        write(&temporary).and_then(|()| fs::rename(&temporary, path).map_err(context("renaming to", path)));
    if written.is_err() {
        // What failed is reported; the remains only take space.
        drop(fs::remove_file(&temporary));
    }
    written
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<File, Error> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(context("creating", path))?;
    // The process's umask may have taken more than was asked.
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(context("setting the mode of", path))?;
    file.write_all(content).map_err(context("writing", path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn secrets_are_private_and_survive() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(&temporary.path().join("a/state")).unwrap();
        assert_eq!(mode(&temporary.path().join("a/state")), 0o700);
        assert_eq!(folder.read_secret("key").unwrap(), None);
        folder.write_secret("key", "first").unwrap();
        folder.write_secret("key", "second").unwrap();
        assert_eq!(mode(&folder.path("key")), 0o600);
        assert_eq!(
            Folder::open(&temporary.path().join("a/state")).unwrap().read_secret("key").unwrap().as_deref(),
            Some("second")
        );
        let names: Vec<_> = fs::read_dir(temporary.path().join("a/state"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["key"], "no temporary file is left");
    }

    #[test]
    fn exposed_secrets_are_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).unwrap();
        folder.write_secret("key", "x").unwrap();
        for exposed in [0o640, 0o604, 0o620, 0o602] {
            fs::set_permissions(folder.path("key"), fs::Permissions::from_mode(exposed)).unwrap();
            let error = folder.read_secret("key").unwrap_err();
            assert!(matches!(error, Error::Exposed { mode, .. } if mode == exposed), "{error}");
        }
        fs::set_permissions(folder.path("key"), fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(folder.read_secret("key").unwrap().as_deref(), Some("x"));
    }

    #[test]
    fn removing_twice_is_fine() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).unwrap();
        folder.write_public("a", "x").unwrap();
        assert_eq!(mode(&folder.path("a")), 0o644);
        folder.remove("a").unwrap();
        folder.remove("a").unwrap();
        assert!(!folder.path("a").exists());
    }
}
