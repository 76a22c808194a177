//! Descriptors of network namespaces, checked to be that: [`NetworkNamespace`].
#![expect(unsafe_code, reason = "ioctl NS_GET_NSTYPE has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Why a descriptor is refused.
#[derive(Debug, thiserror::Error)]
pub enum NetworkNamespaceError {
    /// The kernel did not tell what the descriptor is.
    #[error("failed to inspect descriptor")]
    Inspect(#[source] io::Error),
    /// The descriptor is a file, a socket or the like.
    #[error("descriptor is not a namespace")]
    NotNamespace,
    /// The descriptor is a mount, process or other namespace.
    #[error("descriptor is not a network namespace")]
    NotNetwork,
    /// The namespace is one that pods do not live in.
    #[error("descriptor is the network namespace of {0}, not of a pod")]
    Host(&'static str),
}

/// Identifies a namespace while it exists (its inode may be used again afterwards).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

/// An open network namespace.
#[derive(Debug)]
pub struct NetworkNamespace {
    descriptor: OwnedFd,
    id: NamespaceId,
}

impl NetworkNamespace {
    /// Takes a descriptor of any network namespace.
    pub fn new(descriptor: OwnedFd) -> Result<Self, NetworkNamespaceError> {
        let failed = |e: nix::Error| NetworkNamespaceError::Inspect(e.into());
        if fstatfs(&descriptor).map_err(failed)?.filesystem_type().0 != NSFS_MAGIC {
            return Err(NetworkNamespaceError::NotNamespace);
        }
        if namespace_type(descriptor.as_fd()).map_err(NetworkNamespaceError::Inspect)? != libc::CLONE_NEWNET {
            return Err(NetworkNamespaceError::NotNetwork);
        }
        let stat = fstat(&descriptor).map_err(failed)?;
        Ok(Self { descriptor, id: NamespaceId { device: stat.st_dev, inode: stat.st_ino } })
    }

    /// Takes a descriptor that is a pod's: neither the daemon's own namespace, nor the machine's first, nor
    /// the one its source lives in.
    pub fn of_pod(descriptor: OwnedFd, source_pid: i32) -> Result<Self, NetworkNamespaceError> {
        let pod = Self::new(descriptor)?;
        let own = Self::open("/proc/thread-self/ns/net").map_err(NetworkNamespaceError::Inspect)?;
        if own.id == pod.id {
            return Err(NetworkNamespaceError::Host("the daemon"));
        }
        // Either may be unreadable (another process-id namespace, a container without ptrace rights): the
        // check above is the one that always counts, these catch a source that hands over its own by
        // mistake.
        for (path, owner) in [
            (format!("/proc/{source_pid}/ns/net"), "its source"),
            ("/proc/1/ns/net".to_owned(), "the machine"),
        ] {
            if let Ok(host) = Self::open(path)
                && host.id == pod.id
            {
                return Err(NetworkNamespaceError::Host(owner));
            }
        }
        Ok(pod)
    }

    /// Opens a namespace by its path (`/run/netns/NAME`, `/proc/PID/ns/net`).
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::new(File::open(path)?.into()).map_err(io::Error::other)
    }

    /// What identifies it.
    pub fn id(&self) -> NamespaceId {
        self.id
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn namespace_type(descriptor: BorrowedFd<'_>) -> io::Result<i32> {
    /// `_IO(0xb7, 0x3)` of linux/nsfs.h.
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument and only returns a number; the descriptor is open.
    let kind = unsafe { libc::ioctl(descriptor.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 { Err(io::Error::last_os_error()) } else { Ok(kind) }
}
