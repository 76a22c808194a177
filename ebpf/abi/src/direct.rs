//! Keys and values of the maps for the direct path: cached verdicts, endpoint tables, tracked flows.

use crate::{Address, NetnsCookie, WorkloadNumber};

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct SocketAddress {
    /// The IPv6 or v4-mapped address.
    pub address: Address,
    /// In host byte order; 0: unset.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

impl SocketAddress {
    /// No address.
    pub const UNSET: Self = Self::new(Address([0; 4]), 0);

    /// An address and a port.
    #[inline(always)]
    pub const fn new(address: Address, port: u16) -> Self {
        Self { address, port, reserved: 0 }
    }

    /// Whether this is no address.
    #[inline(always)]
    pub const fn is_unset(self) -> bool {
        self.port == 0
    }
}

/// Key of a cached verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct VerdictKey {
    /// The connecting workload.
    pub source: WorkloadNumber,
    /// The address it connects to.
    pub destination: SocketAddress,
    /// Zero.
    pub reserved: u32,
}

impl VerdictKey {
    /// The key for connections of a workload to an address.
    #[inline(always)]
    pub const fn new(source: WorkloadNumber, destination: SocketAddress) -> Self {
        Self { source, destination, reserved: 0 }
    }
}

/// A cached verdict: the connection is allowed while the destination's generation is the same and the lease
/// has not ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct VerdictEntry {
    /// The workload that has the address.
    pub destination: WorkloadNumber,
    /// The destination's generation when the verdict was decided.
    pub generation: u64,
}

/// Key of a client's endpoint under session affinity.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct AffinityKey {
    /// The connecting workload.
    pub source: WorkloadNumber,
    /// The service's address and port.
    pub service: SocketAddress,
    /// Zero.
    pub reserved: u32,
}

impl AffinityKey {
    /// The key for connections of a workload to a service.
    #[inline(always)]
    pub const fn new(source: WorkloadNumber, service: SocketAddress) -> Self {
        Self { source, service, reserved: 0 }
    }
}

/// How an endpoint of a service is chosen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Service {
    /// The number of its table; never reused.
    pub table: u64,
    /// The table's number of slots.
    pub slots: u32,
    /// [`Service::AFFINITY`] or 0.
    pub flags: u32,
}

impl Service {
    /// Flag: session affinity. The endpoint is the client's entry in `STICKY`; without one the daemon
    /// chooses.
    pub const AFFINITY: u32 = 1;
}

/// Key of a slot in a service's table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct SlotKey {
    /// The table's number.
    pub table: u64,
    /// The slot's index, from 0.
    pub slot: u32,
    /// Zero.
    pub reserved: u32,
}

/// Two endpoints that share a slot (the alias method): of 2^32 draws the first one gets `threshold`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Slot {
    /// The first endpoint's share of 2^32.
    pub threshold: u32,
    /// The first endpoint.
    pub own: SocketAddress,
    /// The second endpoint; the same as the first where that has the whole slot.
    pub alias: SocketAddress,
}

/// The 4-tuple of a TCP connection. On a node pods' addresses are unique.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Tuple {
    /// The connecting end's address.
    pub client: Address,
    /// The accepting end's address.
    pub server: Address,
    /// The connecting end's port, in host byte order.
    pub client_port: u16,
    /// The accepting end's port, in host byte order.
    pub server_port: u16,
}

/// A tracked flow: a connection that no daemon carries. Direct ones are tracked from the SYN on, native ones
/// that arrive at an enrolled pod from when they are established.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct FlowEntry {
    /// The client, where the kernel knows it for certain.
    pub source: WorkloadNumber,
    /// The server.
    pub destination: WorkloadNumber,
    /// The destination's generation when the kernel allowed it.
    pub generation: u64,
    /// Cookie of the client's socket, or 0.
    pub client_cookie: u64,
    /// Cookie of the server's socket; 0 until the connection is established.
    pub server_cookie: u64,
    /// The client's network namespace, or 0.
    pub client_netns: NetnsCookie,
    /// The server's network namespace; 0 until the connection is established.
    pub server_netns: NetnsCookie,
    /// Nanoseconds of the monotonic clock.
    pub opened: u64,
    /// The destination that the client passed to `connect()`, if the kernel knows it.
    pub original_destination: SocketAddress,
    /// [`Path`](crate::Path).
    pub path: u8,
    /// [`FlowEntry::PROBE`], [`FlowEntry::SHARED`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

impl FlowEntry {
    /// Flag: from a process of this node to a port that the pod declares as a probe; allowed under any
    /// policy.
    pub const PROBE: u8 = 1;
    /// Flag: between shared links, whose programs have the connection in `LINK_FLOWS`.
    pub const SHARED: u8 = 2;
}

/// State of a server's socket, from which the record of its end is made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Accepted {
    /// The connection.
    pub tuple: Tuple,
    /// The sequence number after the peer's FIN; valid with [`Accepted::FIN_SEEN`].
    pub fin_sequence: u32,
    /// The flow as it was entered.
    pub flow: FlowEntry,
    /// The client, found by its address where nothing better is known: for records only.
    pub probable_source: WorkloadNumber,
    /// [`Accepted::FIN_SEEN`], [`Accepted::FIN_SENT`].
    pub fins: u32,
    /// Zero.
    pub reserved: u32,
}

impl Accepted {
    /// Flag: a segment with the peer's FIN arrived.
    pub const FIN_SEEN: u32 = 1;
    /// Flag: a segment with our FIN was sent.
    pub const FIN_SENT: u32 = 2;
}

// The sizes are part of the interface: a change takes a new version.
const _: () = {
    assert!(size_of::<SocketAddress>() == 20);
    assert!(size_of::<VerdictKey>() == 32);
    assert!(size_of::<VerdictEntry>() == 16);
    assert!(size_of::<AffinityKey>() == 32);
    assert!(size_of::<Service>() == 16);
    assert!(size_of::<SlotKey>() == 16);
    assert!(size_of::<Slot>() == 44);
    assert!(size_of::<Tuple>() == 36);
    assert!(size_of::<FlowEntry>() == 88);
    assert!(size_of::<Accepted>() == 144);
};
