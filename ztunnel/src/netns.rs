//! Sockets inside a pod's network namespace: [`within`].
//!
//! A socket belongs for good to the namespace that its thread is in when it is created. So a thread enters,
//! creates the socket, and is back before anything else can run on it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::LazyLock;

use nix::sched::{CloneFlags, setns};

/// The daemon's own namespace, to come back to. Opened once: `open()` takes long compared with what a
/// connection needs. Not once for each thread: what the daemon holds would depend on which threads have made
/// a socket.
static OWN: LazyLock<File> = LazyLock::new(|| File::open("/proc/self/ns/net").expect("/proc is mounted"));

/// Runs the closure with the calling thread inside the namespace. It must not block, and nothing in it may
/// await.
pub(crate) fn within<T>(namespace: &impl AsFd, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let guard = Guard { own: &OWN };
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let made = make();
    drop(guard);
    made
}

/// Brings the thread back, also when the closure panics.
struct Guard<'a> {
    own: &'a File,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.own, CloneFlags::CLONE_NEWNET) {
            // A worker left in a pod's namespace would make other pods' sockets there.
            tracing::error!(%error, "failed to leave a pod's network namespace");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests;
