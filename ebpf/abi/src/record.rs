//! Records: what the kernel tells the daemon about connections that the daemon does not carry.

use crate::{NetnsCookie, Place, Tuple, WorkloadNumber};

/// What a record is about.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// An enrolled pod's app got a connection.
    Opened = 1,
    /// The server's end of such a connection closed.
    Closed = 2,
    /// `connect()` was refused, or a SYN.
    Refused = 3,
    /// A connection was established that must be decided again, now: the policy changed on its way.
    Stale = 4,
}

impl RecordKind {
    /// The kind with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Opened),
            2 => Some(Self::Closed),
            3 => Some(Self::Refused),
            4 => Some(Self::Stale),
            _ => None,
        }
    }
}

/// An entry of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// [`RecordKind`].
    pub kind: u8,
    /// [`Path`](crate::Path).
    pub path: u8,
    /// [`Flow::PROBE`](crate::Flow::PROBE) or 0.
    pub flags: u8,
    /// Zero.
    pub reserved: u8,
    /// [`KernelReason`](crate::KernelReason).
    pub reason: u32,
    /// The client, where it is enrolled on this node.
    pub source: WorkloadNumber,
    /// The server, where it is enrolled on this node.
    pub destination: WorkloadNumber,
    /// The namespace whose kernel program writes: the server's, and the client's for a refused `connect()`.
    pub netns: NetnsCookie,
    /// Cookie of the server's socket, or 0.
    pub server_cookie: u64,
    /// What the client's app sent.
    pub from_client: u64,
    /// What the server's app sent.
    pub from_server: u64,
    /// Nanoseconds of the monotonic clock; 0 where nothing was opened.
    pub opened: u64,
    /// Nanoseconds of the monotonic clock: now.
    pub at: u64,
    /// The connection; a refused `connect()` has no client's end yet.
    pub tuple: Tuple,
    /// What the client asked for, if the kernel knows it.
    pub asked: Place,
}

const _: () = assert!(size_of::<Record>() == 128);
