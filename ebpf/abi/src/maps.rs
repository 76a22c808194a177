//! The maps: their names and limits, and the keys and values of capture.

use crate::{Address, NetnsCookie, Place, WorkloadNumber};

/// Names of maps and programs, in the object and as pins.
pub mod names {
    /// [`NetnsCookie`](crate::NetnsCookie) → [`Pod`](super::Pod): who is enrolled.
    pub const PODS: &str = "PODS";
    /// Cookie → [`PodName`](super::PodName); read by daemons only.
    pub const POD_NAMES: &str = "POD_NAMES";
    /// Cookie → how many entries of `HANDOFFS` are the pod's (u64).
    pub const POD_HANDOFFS: &str = "POD_HANDOFFS";
    /// [`PortKey`](super::PortKey) → [`PortRule`](super::PortRule).
    pub const PORTS: &str = "PORTS";
    /// [`Address`](crate::Address) → u8: addresses of this node, which probes come from.
    pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
    /// Address → u8: destinations whose connections ztunnel carries.
    pub const DESTINATIONS: &str = "DESTINATIONS";
    /// [`ListenerKey`](super::ListenerKey) → ztunnel's listening socket.
    pub const LISTENERS: &str = "LISTENERS";
    /// [`FlowKey`](super::FlowKey) → [`Handoff`](super::Handoff).
    pub const HANDOFFS: &str = "HANDOFFS";
    /// Socket → [`Socket`](super::Socket), in the socket's own storage.
    pub const SOCKETS: &str = "SOCKETS";
    /// [`KernelReason`](crate::KernelReason) → how often (u64 for each CPU).
    pub const REFUSALS: &str = "REFUSALS";

    /// [`WorkloadNumber`](crate::WorkloadNumber) → u64: the generation of a destination's policy.
    pub const GENERATIONS: &str = "GENERATIONS";
    /// [`Towards`](crate::Towards) → [`Yes`](crate::Yes).
    pub const VERDICTS: &str = "VERDICTS";
    /// 0 → until when verdicts hold (u64, nanoseconds of the monotonic clock).
    pub const LEASE: &str = "LEASE";
    /// [`Address`](crate::Address) → `WorkloadNumber`: whose it probably is; for names, never for decisions.
    pub const LOCALS: &str = "LOCALS";
    /// [`Place`](crate::Place) → [`Service`](crate::Service).
    pub const SERVICES: &str = "SERVICES";
    /// [`SlotKey`](crate::SlotKey) → [`Slot`](crate::Slot).
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// `Towards` a service → `Place`: the endpoint that a client with session affinity has.
    pub const STICKY: &str = "STICKY";
    /// [`Tuple`](crate::Tuple) → [`Flow`](crate::Flow).
    pub const FLOWS: &str = "FLOWS";
    /// Cookie → how many entries of `FLOWS` are the pod's (u64).
    pub const POD_FLOWS: &str = "POD_FLOWS";
    /// Socket → [`Accepted`](crate::Accepted), in the storage of servers' sockets.
    pub const ACCEPTED: &str = "ACCEPTED";
    /// Socket → u8: ztunnel's own listeners and what they accept.
    pub const OWN: &str = "OWN";
    /// The ring buffer of [`Record`](crate::Record)s.
    pub const RECORDS: &str = "RECORDS";

    /// Every map that is pinned.
    pub const MAPS: [&str; 22] = [
        PODS,
        POD_NAMES,
        POD_HANDOFFS,
        PORTS,
        NODE_ADDRESSES,
        DESTINATIONS,
        LISTENERS,
        HANDOFFS,
        SOCKETS,
        REFUSALS,
        GENERATIONS,
        VERDICTS,
        LEASE,
        LOCALS,
        SERVICES,
        ENDPOINTS,
        STICKY,
        FLOWS,
        POD_FLOWS,
        ACCEPTED,
        OWN,
        RECORDS,
    ];

    /// The programs on the cgroup, which are also the beginnings of their links' pins.
    pub const CGROUP_PROGRAMS: [&str; 5] =
        ["connect4", "connect6", "getpeername4", "getpeername6", "socket_operations"];
    /// The program on each enrolled namespace.
    pub const INBOUND_PROGRAM: &str = "inbound";
    /// Its read-only variable that says for which namespace it was loaded.
    pub const INBOUND_COOKIE: &str = "NETNS_COOKIE";
    /// Read-only variable of the programs on the cgroup: 1 if the kernel knows Multipath TCP.
    pub const MULTIPATH: &str = "MULTIPATH";
}

/// How many entries maps may have.
pub mod limits {
    /// Enrolled pods of one node.
    pub const PODS: u32 = 4096;
    /// Port rules of all pods.
    pub const PORTS: u32 = 1 << 16;
    /// Addresses of the node.
    pub const NODE_ADDRESSES: u32 = 1024;
    /// Captured destinations.
    pub const DESTINATIONS: u32 = 1 << 18;
    /// Hand-offs of one pod: what a flood in one pod may take from the others, who have as much each.
    pub const POD_HANDOFFS: u64 = 1 << 12;
    /// Hand-offs of all pods.
    pub const HANDOFFS: u32 = 1 << 18;
    /// Remembered verdicts.
    pub const VERDICTS: u32 = 1 << 18;
    /// Addresses of enrolled pods.
    pub const LOCALS: u32 = 1 << 14;
    /// Services with a choice in the kernel.
    pub const SERVICES: u32 = 1 << 16;
    /// Slots of their tables.
    pub const ENDPOINTS: u32 = 1 << 18;
    /// Clients with session affinity.
    pub const STICKY: u32 = 1 << 17;
    /// Listed connections of one pod: direct ones as their client, native ones as their server.
    pub const POD_FLOWS: u64 = 1 << 15;
    /// Listed connections of all pods.
    pub const FLOWS: u32 = 1 << 19;
    /// Bytes of the ring buffer.
    pub const RECORDS: u32 = 1 << 20;
}

/// How plaintext that arrives at an enrolled pod is treated.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InboundMode {
    /// Passes to the app: plaintext is permitted and no policy selects the pod.
    Open = 1,
    /// Goes to ztunnel's plaintext listener, which decides.
    Check = 2,
    /// Refused.
    Strict = 3,
}

impl InboundMode {
    /// The mode with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Open),
            2 => Some(Self::Check),
            3 => Some(Self::Strict),
            _ => None,
        }
    }
}

/// An enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Port of ztunnel's listener on 127.0.0.1 in the pod; 0: none.
    pub outbound_v4: u16,
    /// Port of ztunnel's listener on `::1` in the pod; 0: none.
    pub outbound_v6: u16,
    /// [`InboundMode`] of ports without a rule.
    pub mode: u8,
    /// [`Pod::EXCLUDES`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// This enrolment.
    pub number: WorkloadNumber,
}

impl Pod {
    /// Flag: there is a [`PortRule`] of the pod's that excludes its own connections.
    pub const EXCLUDES: u8 = 1;
}

/// A pod's workload name.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodName {
    /// How many of the bytes count.
    pub length: u32,
    /// UTF-8.
    pub bytes: [u8; 508],
}

/// A port of a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortKey {
    /// The pod.
    pub netns: NetnsCookie,
    /// The port.
    pub port: u32,
    /// Zero.
    pub reserved: u32,
}

impl PortKey {
    /// The key of a pod's port.
    #[inline(always)]
    pub const fn new(netns: NetnsCookie, port: u16) -> Self {
        Self { netns, port: port as u32, reserved: 0 }
    }
}

/// What is special about a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRule {
    /// [`InboundMode`], or 0: the pod's.
    pub mode: u8,
    /// 1: a probe, which this node reaches under any policy.
    pub probe: u8,
    /// 1: the pod's own connections to this port, whoever has it, are left alone.
    pub excluded: u8,
    /// Zero.
    pub reserved: u8,
}

/// Which of a pod's listeners.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerSlot {
    /// Tunnels over IPv4.
    HboneV4 = 0,
    /// Tunnels over IPv6.
    HboneV6 = 1,
    /// Plaintext over IPv4.
    PlaintextV4 = 2,
    /// Plaintext over IPv6.
    PlaintextV6 = 3,
}

impl ListenerSlot {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::HboneV4, Self::HboneV6, Self::PlaintextV4, Self::PlaintextV6];
}

/// A listener of a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerKey {
    /// The pod.
    pub netns: NetnsCookie,
    /// [`ListenerSlot`].
    pub slot: u32,
    /// Zero.
    pub reserved: u32,
}

impl ListenerKey {
    /// The key of a pod's listener.
    #[inline(always)]
    pub const fn new(netns: NetnsCookie, slot: ListenerSlot) -> Self {
        Self { netns, slot: slot as u32, reserved: 0 }
    }
}

/// A connection inside a pod, as both of its ends see it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey {
    /// The pod.
    pub netns: NetnsCookie,
    /// The connecting end.
    pub client: Address,
    /// Its port, in host byte order.
    pub client_port: u16,
    /// The accepting end's port, in host byte order.
    pub server_port: u16,
    /// Zero.
    pub reserved: u32,
}

/// What the connecting end leaves for the accepting end: made when the SYN leaves, taken when the
/// connection is established, dropped when the connecting socket closes before.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handoff {
    /// Cookie of the connecting socket.
    pub owner: u64,
    /// See [`Role`]: of the accepted socket.
    pub address: Address,
    /// In host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// [`Role`] of the accepted socket.
    pub role: u32,
    /// The endpoint that the kernel chose for the connection, if it did.
    pub chosen: Place,
    /// Zero.
    pub unused: u32,
}

/// What a socket is to the mesh.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An app's captured client socket; the address is the one it asked for.
    Client = 1,
    /// ztunnel's own socket towards a peer; the hooks leave it alone.
    Outbound = 2,
    /// ztunnel's own socket towards an app; the address is the real client's.
    Inbound = 3,
    /// ztunnel's accepted end of a captured connection; the address is the one the app asked for.
    Captured = 4,
    /// An app's accepted socket; the address is the real client's.
    Server = 5,
    /// An app's client socket on the direct path; the address is the one it asked for.
    DirectClient = 6,
}

/// What the mesh remembers in a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// [`Role`].
    pub role: u32,
    /// In host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// See [`Role`].
    pub address: Address,
    /// Connecting sockets: their hand-off; all zero before there is one.
    pub flow: FlowKey,
    /// The endpoint that the kernel chose, if it did; `DirectClient`: where it may go.
    pub chosen: Place,
    /// Zero.
    pub unused: u32,
    /// `DirectClient`: who connects.
    pub source: WorkloadNumber,
    /// `DirectClient`: to whom.
    pub destination: WorkloadNumber,
    /// `DirectClient`: the generation of the verdict.
    pub generation: u64,
}

impl Socket {
    /// A socket with a role and what belongs to it.
    #[inline(always)]
    pub const fn new(role: Role, address: Address, port: u16) -> Self {
        let flow = FlowKey {
            netns: NetnsCookie(0),
            client: Address([0; 4]),
            client_port: 0,
            server_port: 0,
            reserved: 0,
        };
        let chosen = Place::new(Address([0; 4]), 0);
        let (source, destination) = (WorkloadNumber::NONE, WorkloadNumber::NONE);
        Self {
            role: role as u32,
            port,
            reserved: 0,
            address,
            flow,
            chosen,
            unused: 0,
            source,
            destination,
            generation: 0,
        }
    }
}

// The kernel sees these sizes; a change is a new version.
const _: () = {
    assert!(size_of::<Pod>() == 16);
    assert!(size_of::<PodName>() == 512);
    assert!(size_of::<PortKey>() == 16);
    assert!(size_of::<PortRule>() == 4);
    assert!(size_of::<ListenerKey>() == 16);
    assert!(size_of::<FlowKey>() == 32);
    assert!(size_of::<Handoff>() == 56);
    assert!(size_of::<Socket>() == 104);
};
