#![no_std]
//! What the kernel programs and the loader agree on: names, keys, values, modes, paths and reasons.
//!
//! Everything here is `repr(C)` without implicit padding, because the kernel compares keys byte by byte.
//! A change of any layout or meaning takes a new [`VERSION`]. A reserved byte may get a meaning without one,
//! as long as zero means what was before: older daemons leave it zero, or as it is, and older programs do not
//! look at it.

#![expect(
    clippy::inline_always,
    reason = "kernel programs are one function each: what is not inlined is a call the verifier must follow"
)]

mod address;
mod direct;
mod maps;
mod number;
mod path;
mod reason;
mod record;

pub use address::Address;
pub use direct::{Accepted, Flow, Place, Service, Slot, SlotKey, Towards, Tuple, Yes};
pub use maps::{
    FlowKey, Handoff, InboundMode, ListenerKey, ListenerSlot, Pod, PodName, PortKey, PortRule, Role, Socket,
    limits, names,
};
pub use number::{NetnsCookie, WorkloadNumber};
pub use path::Path;
pub use reason::KernelReason;
pub use record::{Record, RecordKind};

/// The version of this interface; maps and links of different versions never meet.
pub const VERSION: u32 = 2;

/// The port on which enrolled pods receive tunnels.
pub const HBONE_PORT: u16 = 15008;
