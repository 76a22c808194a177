//! The state folder: files that survive a restart, each written atomically. Entry point: [`Folder`].
//!
//! | file | mode | holds |
//! |---|---|---|
//! | `ca.pem` | 0600 | the root certificate and its key, in one file so that they always match |
//! | `token.key` | 0600 | the key that signs the nodes' tokens |
//! | `good/` | 0700 | the last good version of every object file |
//! | `programmed.json` | 0600 | the waypoints that were ready once |
//! | `addresses.json` | 0644 | where the running controller listens |
//! | `lock` | 0600 | held while `ca.pem` and `token.key` are created |

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// No secret is larger than this.
const MAX_SECRET: u64 = 64 * 1024;

/// What went wrong in the state folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "failed to read {}: others than its owner have access (mode {mode:04o}); run: chmod 600 {}",
        path.display(),
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("failed to read {}: it belongs to user {owner}, not to this process' user", path.display())]
    Foreign { path: PathBuf, owner: u32 },
    #[error("failed to read {}: {size} bytes are too many for a secret", path.display())]
    Oversized { path: PathBuf, size: u64 },
}

/// Names the operation (an infinitive) and the path of an I/O error.
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
    /// Opens it, or creates it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        make_private(path)?;
        Ok(Self { path: path.to_owned() })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Waits for the lock under which secrets are created: `controller bootstrap` may run beside
    /// `controller run`.
    pub(crate) fn lock(&self) -> Result<Flock<File>, Error> {
        let path = self.path("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(context("open", &path))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| context("lock", &path)(errno.into()))
    }

    /// A secret, if it exists. One that others can access is refused.
    pub(crate) fn read_secret(&self, name: &str) -> Result<Option<String>, Error> {
        let path = self.path(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(context("open", &path)(error)),
        };
        let metadata = file.metadata().map_err(context("read metadata of", &path))?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(Error::Exposed { path, mode });
        }
        if metadata.uid() != nix::unistd::geteuid().as_raw() {
            return Err(Error::Foreign { path, owner: metadata.uid() });
        }
        if metadata.len() > MAX_SECRET {
            return Err(Error::Oversized { path, size: metadata.len() });
        }
        let mut text = String::new();
        file.take(MAX_SECRET).read_to_string(&mut text).map_err(context("read", &path))?;
        Ok(Some(text))
    }

    /// Writes a secret: mode 0600 from its first byte.
    pub(crate) fn write_secret(&self, name: &str, content: &str) -> Result<(), Error> {
        write_atomically(&self.path(name), content.as_bytes(), 0o600)
    }

    /// Writes a file that everyone may read.
    pub(crate) fn write_public(&self, name: &str, content: &str) -> Result<(), Error> {
        write_atomically(&self.path(name), content.as_bytes(), 0o644)
    }

    /// Removes a file; a missing one is fine.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        remove(&self.path(name))
    }
}

/// Creates a folder, and those above it, for the owner only.
pub(crate) fn make_private(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(context("create", path))
}

/// Removes a file; a missing one is fine.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(context("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Replaces a file so that a crash of the process leaves the old content or the new, never a part. A crash of
/// the machine may leave neither.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    replace_with(path, |temporary| write_new(temporary, content, mode).map(drop))
}

/// Replaces a file so that any crash leaves the old content or the new, never a part.
fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    replace_with(path, |temporary| {
        let file = write_new(temporary, content, mode)?;
        file.sync_all().map_err(context("write", temporary))
    })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(context("sync", folder))
}

fn replace_with(path: &Path, write: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    remove(&temporary)?;
    let written =
        write(&temporary).and_then(|()| fs::rename(&temporary, path).map_err(context("rename to", path)));
    if written.is_err() {
        // The error is returned; the temporary file only takes space.
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
        .map_err(context("create", path))?;
    // The umask may have removed bits of the mode.
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(context("set the mode of", path))?;
    file.write_all(content).map_err(context("write", path))?;
    Ok(file)
}

#[cfg(test)]
mod tests;
