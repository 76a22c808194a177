#![no_std]
#![warn(missing_docs)]
//! The interface between the kernel programs and the loader: names, keys, values, modes, paths and reasons.
//!
//! Everything here is `repr(C)` without implicit padding, because the kernel compares keys byte by byte.
//! A change of any layout or meaning takes a new [`VERSION`]. A reserved byte may get a meaning without one
//! if zero stands for the earlier behaviour: older daemons leave the byte as it is, and older programs do not
//! read it.

#![expect(
    clippy::inline_always,
    reason = "kernel programs are one function each: what is not inlined is a call the verifier must follow"
)]

mod address;
mod capture;
mod direct;
pub mod limits;
mod link;
pub mod names;
mod number;
mod path;
mod reason;
mod record;

pub use address::Address;
pub use capture::{
    Daemon, Destination, Handoff, HandoffKey, InboundMode, Lease, ListenerKey, ListenerSlot, NamespaceTag,
    PartKey, Pod, PodName, PortKey, PortRule, Role, Socket,
};
pub use direct::{
    Accepted, AffinityKey, FlowEntry, Service, Slot, SlotKey, SocketAddress, Tuple, VerdictEntry, VerdictKey,
};
pub use link::{HardwareAddress, LinkEntry, LinkFlow, LinkKind};
pub use number::{NetnsCookie, WorkloadNumber};
pub use path::Path;
pub use reason::KernelReason;
pub use record::{RecordEntry, RecordKind, RefusalBudget};

/// The version of this interface. Maps and links of different versions are pinned apart.
pub const VERSION: u32 = 3;

/// The port on which enrolled pods accept tunnels.
pub const HBONE_PORT: u16 = 15008;
