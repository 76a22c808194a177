//! Sockets inside a pod's network namespace: [`within`].
//!
//! A socket belongs to the namespace its thread is in when it is made, for good. So a thread goes in, makes
//! the socket, and is back before anything else can run on it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::sched::{CloneFlags, setns};

thread_local! {
    /// The thread's own namespace, to come back to: opened once, since a connection is short compared with `open()`.
    static OWN: File = File::open("/proc/thread-self/ns/net").expect("/proc is mounted");
}

/// Runs the closure with the calling thread inside the namespace. It must not block, and nothing in it may
/// await.
pub(crate) fn within<T>(namespace: &impl AsFd, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    OWN.with(|own| {
        let guard = Guard { own };
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let made = make();
        drop(guard);
        made
    })
}

/// Brings the thread back, also when the closure panics.
struct Guard<'a> {
    own: &'a File,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.own, CloneFlags::CLONE_NEWNET) {
            // A worker left in a pod's namespace would make other pods' sockets there.
            tracing::error!(%error, "cannot return from a pod's network namespace");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn inode() -> u64 {
        std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
    }

    fn fresh() -> File {
        std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn the_thread_is_inside_and_back() {
        let namespace = fresh();
        let (own, other) = (inode(), namespace.metadata().unwrap().ino());
        assert_ne!(own, other);
        assert_eq!(within(&namespace, || Ok(inode())).unwrap(), other);
        assert_eq!(inode(), own);
        let failed: io::Result<()> = within(&namespace, || Err(io::ErrorKind::Other.into()));
        assert!(failed.is_err());
        assert_eq!(inode(), own);
    }

    #[test]
    fn the_thread_is_back_after_a_panic() {
        let namespace = fresh();
        std::thread::spawn(move || {
            let own = inode();
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                within::<()>(&namespace, || panic!("on purpose"))
            }));
            assert!(panicked.is_err());
            assert_eq!(inode(), own);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_is_no_namespace_leaves_the_thread_where_it_is() {
        let own = inode();
        let file = tempfile::tempfile().unwrap();
        let result = within(&file, || Ok(inode()));
        assert!(result.is_err());
        assert_eq!(inode(), own);
    }
}
