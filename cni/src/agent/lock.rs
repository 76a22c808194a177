//! One agent of a node acts at a time. In a rolling update the new one starts before the old one ends, and
//! waits.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::oneshot;

/// Held until it is dropped, or the process ends.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "holds by existing")] Flock<File>);

/// The lock, if it is free.
pub(crate) fn try_take(path: &Path) -> io::Result<Option<Lock>> {
    match Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) if is_at(path, &lock) => Ok(Some(Lock(lock))),
        // Removed by an uninstallation: try the new file.
        Ok(_) => try_take(path),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

/// Waits for the lock, on a thread of its own.
pub(crate) async fn take(path: PathBuf) -> io::Result<Lock> {
    let (sender, taken) = oneshot::channel();
    std::thread::Builder::new().name("lock".to_owned()).spawn(move || {
        // The receiver is gone when the agent stops.
        _ = sender.send(wait(&path));
    })?;
    taken.await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?
}

fn wait(path: &Path) -> io::Result<Lock> {
    loop {
        match Flock::lock(open(path)?, FlockArg::LockExclusive) {
            Ok(lock) if is_at(path, &lock) => return Ok(Lock(lock)),
            Ok(_) | Err((_, nix::Error::EINTR)) => {}
            Err((_, error)) => return Err(error.into()),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

fn is_at(path: &Path, lock: &Flock<File>) -> bool {
    let (Ok(there), Ok(held)) = (std::fs::metadata(path), lock.metadata()) else { return false };
    (there.dev(), there.ino()) == (held.dev(), held.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_taker_waits_for_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.lock");
        let first = try_take(&path).unwrap().expect("the lock is free");
        assert!(try_take(&path).unwrap().is_none());
        let second = tokio::spawn(take(path.clone()));
        drop(first);
        let second = second.await.unwrap().unwrap();
        // An uninstallation removes the file; the next taker creates another.
        std::fs::remove_file(&path).unwrap();
        let third = try_take(&path).unwrap().expect("another file");
        drop((second, third));
    }

    #[tokio::test]
    async fn a_lock_on_a_removed_file_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.lock");
        let first = try_take(&path).unwrap().expect("the lock is free");
        let waiting = tokio::spawn(take(path.clone()));
        std::fs::remove_file(&path).unwrap();
        drop(first);
        let second = waiting.await.unwrap().unwrap();
        assert!(try_take(&path).unwrap().is_none(), "it holds the file that is there");
        drop(second);
    }
}
