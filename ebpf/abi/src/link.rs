//! Keys and values of the maps for the links under direct connections.

use crate::NetnsCookie;

/// The kind of a pod's link. A pod without an entry has a link of an unknown kind.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkKind {
    /// No other pod can send or receive as this one.
    Isolated = 1,
    /// Others can: the programs on the link carry direct connections past them.
    Shared = 2,
    /// The operator declares that no pod on the node does.
    Trusted = 3,
}

impl LinkKind {
    /// The kind with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Isolated),
            2 => Some(Self::Shared),
            3 => Some(Self::Trusted),
            _ => None,
        }
    }
}

/// An Ethernet address.
pub type HardwareAddress = [u8; 6];

/// An enrolled pod's link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct LinkEntry {
    /// The index of the interface at the node's end.
    pub interface: u32,
    /// [`LinkKind`].
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// The address of the pod's interface.
    pub pod: HardwareAddress,
    /// The address of the bridge that the node's end is a port of, or zero.
    pub bridge: HardwareAddress,
    /// Zero.
    pub unused: [u8; 4],
}

/// What the programs on two shared links know of a direct connection between them. It is keyed as the flow
/// is, and stays after the flow has ended: while either end may still send, nothing may leave by the normal
/// way. Several hooks write it in place, each fields of its own, once: events are bytes that become 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct LinkFlow {
    /// Cookie of the client's socket.
    pub client_cookie: u64,
    /// The client's network namespace.
    pub client_netns: NetnsCookie,
    /// When an end closed last, in nanoseconds of the monotonic clock.
    pub closed: u64,
    /// The interface at the node's end of the client's link.
    pub client_interface: u32,
    /// The same of the server's link.
    pub server_interface: u32,
    /// The sequence number of the client's SYN; valid with `syn`.
    pub client_sequence: u32,
    /// The sequence number of the server's SYN-ACK; valid with `syn_ack`.
    pub server_sequence: u32,
    /// The client's SYN left its own link.
    pub syn: u8,
    /// That SYN reached the server's link.
    pub delivered: u8,
    /// The server's SYN-ACK that acknowledges it left the server's own link: both ends are proven.
    pub syn_ack: u8,
    /// The server's socket is known.
    pub accepted: u8,
    /// The client's socket has closed.
    pub client_closed: u8,
    /// The server's socket has closed.
    pub server_closed: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

impl LinkFlow {
    /// Whether neither end can send any more, but for packets that wait in a queue.
    pub const fn has_ended(&self) -> bool {
        self.client_closed != 0 && (self.server_closed != 0 || self.accepted == 0)
    }
}

// The sizes are part of the interface: a change takes a new version.
const _: () = {
    assert!(size_of::<LinkEntry>() == 24);
    assert!(size_of::<LinkFlow>() == 48);
};
