//! The direct path: remembered verdicts, the choice of endpoints, and the connections that are open.

use crate::{Address, NetnsCookie, WorkloadNumber};

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The address.
    pub address: Address,
    /// In host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

impl Place {
    /// An address and a port.
    #[inline(always)]
    pub const fn new(address: Address, port: u16) -> Self {
        Self { address, port, reserved: 0 }
    }

    /// Whether it says nothing.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.port == 0
    }
}

/// A workload and a place it connects to: the key of verdicts and of what affinity remembers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Towards {
    /// Who connects.
    pub source: WorkloadNumber,
    /// To where.
    pub place: Place,
    /// Zero.
    pub reserved: u32,
}

impl Towards {
    /// A workload and a place.
    #[inline(always)]
    pub const fn new(source: WorkloadNumber, place: Place) -> Self {
        Self { source, place, reserved: 0 }
    }
}

/// A yes. It holds as long as the destination's generation is this one and the daemon renews the lease.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Yes {
    /// Whose place it is.
    pub destination: WorkloadNumber,
    /// The destination's generation when the yes was decided.
    pub generation: u64,
}

/// How an endpoint of a service is chosen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The number of its table; never reused.
    pub table: u64,
    /// How many slots the table has.
    pub slots: u32,
    /// [`Service::AFFINITY`] or 0.
    pub flags: u32,
}

impl Service {
    /// Not by the table: each client has an endpoint of its own, or none yet.
    pub const AFFINITY: u32 = 1;
}

/// A slot of a service's table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotKey {
    /// The table.
    pub table: u64,
    /// The slot.
    pub slot: u32,
    /// Zero.
    pub reserved: u32,
}

/// Two endpoints that share a slot (the alias method): of 2^32 draws the first gets `threshold`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The first one's share.
    pub threshold: u32,
    /// The first.
    pub own: Place,
    /// The second; the same where the first has all.
    pub alias: Place,
}

/// A TCP connection, by both its ends. On a node pods' addresses are unique.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// The connecting end.
    pub client: Address,
    /// The accepting end.
    pub server: Address,
    /// In host byte order.
    pub client_port: u16,
    /// In host byte order.
    pub server_port: u16,
}

/// A connection that no daemon carries: direct ones from the SYN on, native ones that arrived at an
/// enrolled pod from when they are established.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The client, where the kernel knows it for certain.
    pub source: WorkloadNumber,
    /// The server.
    pub destination: WorkloadNumber,
    /// The destination's generation when the kernel let it pass.
    pub generation: u64,
    /// Cookie of the client's socket, or 0.
    pub client_cookie: u64,
    /// Cookie of the server's socket; 0 until it is established.
    pub server_cookie: u64,
    /// The client's namespace, or 0.
    pub client_netns: NetnsCookie,
    /// The server's namespace; 0 until it is established.
    pub server_netns: NetnsCookie,
    /// Nanoseconds of the monotonic clock.
    pub opened: u64,
    /// What the client asked for, if the kernel knows it.
    pub asked: Place,
    /// [`Path`](crate::Path).
    pub path: u8,
    /// [`Flow::PROBE`] or 0.
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

impl Flow {
    /// From this node to a port that the pod declares as a probe: passes under any policy.
    pub const PROBE: u8 = 1;
}

/// What a server's socket remembers of its connection, for the record at its end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The connection.
    pub tuple: Tuple,
    /// Where the peer's stream ends: the sequence number after its FIN, if `ends` says that it came.
    pub end: u32,
    /// As it was entered.
    pub flow: Flow,
    /// The client, by its address where nothing better is known: for records only.
    pub probable: WorkloadNumber,
    /// [`Accepted::FIN_SEEN`] and so on.
    pub ends: u32,
    /// Zero.
    pub reserved: u32,
}

impl Accepted {
    /// A segment with the peer's FIN arrived.
    pub const FIN_SEEN: u32 = 1;
    /// A segment with our FIN left.
    pub const FIN_SENT: u32 = 2;
}

// The kernel sees these sizes; a change is a new version.
const _: () = {
    assert!(size_of::<Place>() == 20);
    assert!(size_of::<Towards>() == 32);
    assert!(size_of::<Yes>() == 16);
    assert!(size_of::<Service>() == 16);
    assert!(size_of::<SlotKey>() == 16);
    assert!(size_of::<Slot>() == 44);
    assert!(size_of::<Tuple>() == 36);
    assert!(size_of::<Flow>() == 88);
    assert!(size_of::<Accepted>() == 144);
};
