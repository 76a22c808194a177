//! Files that others may read at any moment: replaced atomically.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Replaces a file atomically; it has this mode from the start.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = beside(path)?;
    let written = write(&temporary, content, mode).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // The temporary file is ours.
        _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Whether the file has this content and mode already.
pub(crate) fn holds(path: &Path, content: &[u8], mode: u32) -> bool {
    let same_mode = || std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o7777 == mode);
    std::fs::read(path).is_ok_and(|found| found == content) && same_mode()
}

/// Replaces `target` atomically with a copy of `source`, unless they are equal already; whether it did.
/// Neither is held in memory: the plugin's binary is larger than the rest of this process.
pub(crate) fn install(source: &Path, target: &Path, mode: u32) -> io::Result<bool> {
    if same(source, target)? && std::fs::metadata(target)?.permissions().mode() & 0o7777 == mode {
        return Ok(false);
    }
    let temporary = beside(target)?;
    let copied = copy(source, &temporary, mode).and_then(|()| std::fs::rename(&temporary, target));
    if copied.is_err() {
        // The temporary file is ours.
        _ = std::fs::remove_file(&temporary);
    }
    copied.map(|()| true)
}

/// By what a file that has changed is known without reading it: the kernel sets the time of its last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// Of a file; none where there is no such file.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        let changed = (found.ctime(), found.ctime_nsec());
        Some(Self { device: found.dev(), inode: found.ino(), length: found.len(), changed })
    }

    /// Whether a change from now on would show: kernels count the time of changes in ticks.
    pub(crate) fn has_settled(&self) -> bool {
        let (seconds, _) = self.changed;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.is_ok_and(|now| i64::try_from(now.as_secs()).is_ok_and(|now| now > seconds.saturating_add(1)))
    }
}

/// Whether both files have the same content; a missing target has not.
fn same(source: &Path, target: &Path) -> io::Result<bool> {
    let source = File::open(source)?;
    let target = match File::open(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    if source.metadata()?.len() != target.metadata()?.len() {
        return Ok(false);
    }
    let (mut source, mut target) = (BufReader::new(source), BufReader::new(target));
    loop {
        let (left, right) = (source.fill_buf()?, target.fill_buf()?);
        let common = left.len().min(right.len());
        if common == 0 {
            return Ok(left.len() == right.len());
        }
        if left[..common] != right[..common] {
            return Ok(false);
        }
        source.consume(common);
        target.consume(common);
    }
}

fn copy(source: &Path, target: &Path, mode: u32) -> io::Result<()> {
    let mut file = create(target)?;
    io::copy(&mut File::open(source)?, &mut file)?;
    finish(&file, mode)
}

/// Removes a file; a missing one is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = create(path)?;
    file.write_all(content)?;
    finish(&file, mode)
}

fn create(path: &Path) -> io::Result<File> {
    remove(path)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn finish(file: &File, mode: u32) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// The temporary file beside another: hidden, and without an extension that runtimes read.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.ambit-new")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replace_sets_content_and_mode() {
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

    #[test]
    fn install_replaces_changed_file() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("source"), folder.path().join("target"));
        // Longer than one buffer.
        let mut content = vec![b'x'; 100_000];
        assert!(install(&source, &target, 0o755).is_err(), "nothing to install");
        for (name, change) in [("new", 0), ("another beginning", 1), ("another end", 99_999)] {
            content[change] += 1;
            std::fs::write(&source, &content).unwrap();
            assert!(install(&source, &target, 0o755).unwrap(), "{name}");
            assert!(holds(&target, &content, 0o755), "{name}");
            assert!(!install(&source, &target, 0o755).unwrap(), "{name}: again");
        }
        assert!(install(&source, &target, 0o700).unwrap(), "another mode");
        std::fs::write(&target, &content[1..]).unwrap();
        assert!(install(&source, &target, 0o755).unwrap(), "another length");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
    }
}
