//! Records: the kernel's reports to the daemon about connections that the daemon does not carry.

use crate::{NetnsCookie, SocketAddress, Tuple, WorkloadNumber};

/// The event that a record reports.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// An app in an enrolled pod got a connection.
    Opened = 1,
    /// The server's end of such a connection closed.
    Closed = 2,
    /// A `connect()` or a SYN was refused.
    Refused = 3,
    /// A connection was established after the policy changed on its way: the daemon must check it again, now.
    Stale = 4,
    /// A connection was established and could not be tracked: the daemon must close it, now.
    Untracked = 5,
}

impl RecordKind {
    /// The kind with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Opened),
            2 => Some(Self::Closed),
            3 => Some(Self::Refused),
            4 => Some(Self::Stale),
            5 => Some(Self::Untracked),
            _ => None,
        }
    }
}

/// An entry of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct RecordEntry {
    /// [`RecordKind`].
    pub kind: u8,
    /// [`Path`](crate::Path).
    pub path: u8,
    /// [`FlowEntry::PROBE`](crate::FlowEntry::PROBE) or 0.
    pub flags: u8,
    /// Zero.
    pub reserved: u8,
    /// [`KernelReason`](crate::KernelReason).
    pub reason: u32,
    /// The client's workload, if it is enrolled on this node.
    pub source: WorkloadNumber,
    /// The server's workload, if it is enrolled on this node.
    pub destination: WorkloadNumber,
    /// The network namespace of the server, or of the client for a refused `connect()`.
    pub netns: NetnsCookie,
    /// Cookie of the server's socket, or 0.
    pub server_cookie: u64,
    /// Bytes that the client's app sent. In a refusal: how many connections were refused at the pod until
    /// now.
    pub from_client: u64,
    /// Bytes that the server's app sent.
    pub from_server: u64,
    /// When the connection was opened, in nanoseconds of the monotonic clock; 0 if it was not.
    pub opened: u64,
    /// When the record was written, in nanoseconds of the monotonic clock.
    pub at: u64,
    /// The connection; a refused `connect()` has no client address yet.
    pub tuple: Tuple,
    /// The destination that the client passed to `connect()`, if the kernel knows it.
    pub original_destination: SocketAddress,
}

/// How many connections were refused at a pod, and how many records it may still leave of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct RefusalBudget {
    /// All that were refused.
    pub refused: u64,
    /// When the present span began, in nanoseconds of the monotonic clock.
    pub since: u64,
    /// Records in the present span.
    pub records: u64,
}

const _: () = assert!(size_of::<RecordEntry>() == 128);
const _: () = assert!(size_of::<RefusalBudget>() == 24);
