//! The plugin's log file: a line for every enrolled pod and every failure. Bounded: at [`MAX_BYTES`] the file
//! is renamed to `FILE.1`, replacing the one before.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

/// The size at which the file is rotated.
const MAX_BYTES: u64 = 1 << 20;

/// Appends a line. If that fails, only the line is lost.
pub(super) fn line(path: Option<&Path>, text: &str) {
    let Some(path) = path else { return };
    _ = append(path, text);
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    let mut file = open(path)?;
    if file.metadata()?.len() >= MAX_BYTES {
        // Several plugins run at a time: the second one finds a short file and leaves it.
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| io::Error::from(error))?;
        if open(path)?.metadata()?.len() >= MAX_BYTES {
            let mut old = path.as_os_str().to_owned();
            old.push(".1");
            std::fs::rename(path, old)?;
        }
        drop(lock);
        file = open(path)?;
    }
    // One write: lines of several plugins do not mix.
    let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    file.write_all(format!("{:.3} {flat}\n", jiff::Timestamp::now()).as_bytes())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_added_and_the_file_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cni.log");
        line(Some(&path), "first\nof all");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with(" first of all\n"), "{text}");
        std::fs::write(&path, vec![b'x'; usize::try_from(MAX_BYTES).unwrap()]).unwrap();
        line(Some(&path), "second");
        line(Some(&path), "third");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text.lines().map(|line| line.rsplit(' ').next().unwrap()).collect::<Vec<_>>(),
            ["second", "third"]
        );
        assert_eq!(std::fs::metadata(folder.path().join("cni.log.1")).unwrap().len(), MAX_BYTES);
    }

    #[test]
    fn unwritable_log_is_ignored() {
        line(Some(Path::new("/proc/nowhere/cni.log")), "lost");
        line(None, "lost");
    }
}
