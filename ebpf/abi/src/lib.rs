#![no_std]
//! What the kernel programs and the loader agree on: names, keys, values, modes, paths and reasons.
//!
//! Everything here is `repr(C)` without implicit padding, because the kernel compares keys byte by byte.
//! A change of any layout or meaning takes a new [`VERSION`].

#![expect(
    clippy::inline_always,
    reason = "kernel programs are one function each: what is not inlined is a call the verifier must follow"
)]

mod address;
mod maps;
mod path;
mod reason;

pub use address::Address;
pub use maps::{
    FlowKey, Handoff, InboundMode, ListenerKey, ListenerSlot, NetnsCookie, Pod, PodName, PortKey, PortRule,
    Role, Socket, limits, names,
};
pub use path::Path;
pub use reason::Reason;

/// The version of this interface; maps and links of different versions never meet.
pub const VERSION: u32 = 1;

/// The port on which enrolled pods receive tunnels.
pub const HBONE_PORT: u16 = 15008;
