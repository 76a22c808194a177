//! Files that others read at any moment: whole, or not there.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Puts a file in its place in one step, with these permissions and no others on the way.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = beside(path)?;
    let written = write(&temporary, content, mode).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // What is in the way is ours.
        _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Whether the file has this content and mode already.
pub(crate) fn holds(path: &Path, content: &[u8], mode: u32) -> bool {
    let same_mode = || std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o7777 == mode);
    std::fs::read(path).is_ok_and(|found| found == content) && same_mode()
}

/// Removes a file; one that is not there is gone already.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    remove(path)?;
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Hidden and without an ending that runtimes read.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.ambit-new")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_whole_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conflist");
        assert!(!holds(&path, b"one", 0o600));
        for (content, mode) in [(b"one", 0o600), (b"two", 0o644)] {
            replace(&path, content, mode).unwrap();
            assert!(holds(&path, content, mode));
        }
        assert!(!holds(&path, b"two", 0o600), "another mode");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(replace(&folder.path().join("missing/a"), b"x", 0o600).is_err());
    }
}
