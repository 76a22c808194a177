//! Keys and values of the maps for capture: enrolled pods, port rules, listeners, hand-offs, sockets.

use crate::{Address, NetnsCookie, SocketAddress, WorkloadNumber};

/// How plaintext that arrives at an enrolled pod is treated.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InboundMode {
    /// Passed to the app: plaintext is permitted and no policy selects the pod.
    Open = 1,
    /// Redirected to ztunnel's plaintext listener, where policy decides.
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

/// What the kernel does by itself while the daemon lives: slots of the map of leases.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Uses cached verdicts.
    Verdicts = 0,
    /// Passes plaintext in mode [`InboundMode::Open`]; without the lease it is checked.
    OpenMode = 1,
}

impl Lease {
    /// How many slots the map has: room for later leases.
    pub const SLOTS: u32 = 8;
}

/// The newest daemon of an instance: it alone puts right what differs in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Daemon {
    /// Grows from daemon to daemon.
    pub number: u64,
    /// When it last looked, in nanoseconds of the monotonic clock.
    pub at: u64,
}

/// An enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Pod {
    /// Port of ztunnel's listener on 127.0.0.1 in the pod; 0: none.
    pub outbound_v4: u16,
    /// Port of ztunnel's listener on `::1` in the pod; 0: none.
    pub outbound_v6: u16,
    /// [`InboundMode`] of ports without a rule.
    pub mode: u8,
    /// [`Pod::EXCLUDES`] or 0.
    pub flags: u8,
    /// The tag of its namespace; 0: captured only where every namespace's connections are.
    pub namespace: NamespaceTag,
    /// The number of this enrolment.
    pub number: WorkloadNumber,
}

impl Pod {
    /// Flag: at least one [`PortRule`] of the pod excludes outbound connections.
    pub const EXCLUDES: u8 = 1;
}

/// Stands for a Kubernetes namespace in keys: a hash of its name. Where two namespaces have the same tag, the
/// kernel captures for both, and the daemon, which knows the names, passes on what is not to be captured.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct NamespaceTag(pub u16);

impl NamespaceTag {
    /// Every namespace.
    pub const ANY: Self = Self(0);

    /// The tag of a namespace, never [`Self::ANY`]: FNV-1a, folded to 16 bits.
    pub const fn of(namespace: &str) -> Self {
        let bytes = namespace.as_bytes();
        let mut hash = 0x811c_9dc5_u32;
        let mut index = 0;
        while index < bytes.len() {
            hash = (hash ^ bytes[index] as u32).wrapping_mul(0x0100_0193);
            index += 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "16 bits each, and try_from is not const")]
        let folded = ((hash >> 16) ^ (hash & 0xffff)) as u16;
        Self(if folded == 0 { 1 } else { folded })
    }
}

/// Which connections to a destination are captured: a set of flags.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Destination(pub u8);

impl Destination {
    /// All of them.
    pub const ALL: Self = Self(1);
    /// Those that have an entry by [`PartKey`].
    pub const PARTS: Self = Self(2);
}

/// Key of connections to a destination that are captured although not all are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct PartKey {
    /// The destination.
    pub address: Address,
    /// Its port, in host byte order; 0: every port.
    pub port: u16,
    /// The client's namespace.
    pub namespace: NamespaceTag,
}

/// A pod's workload name.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct PodName {
    /// Number of bytes used.
    pub length: u32,
    /// UTF-8, padded with zeroes.
    pub bytes: [u8; PodName::CAPACITY],
}

impl PodName {
    /// Greatest length, in bytes.
    pub const CAPACITY: usize = 508;
}

/// Key of a pod's port rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct PortKey {
    /// The pod's network namespace.
    pub netns: NetnsCookie,
    /// The port, in host byte order.
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

/// How a port of a pod differs from the pod's other ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct PortRule {
    /// [`InboundMode`] of connections to the port; 0: the pod's mode.
    pub mode: u8,
    /// 1: the port of a probe, which processes of this node may reach under any policy.
    pub probe: u8,
    /// 1: outbound connections of the pod to this port are not captured.
    pub excluded: u8,
    /// Zero.
    pub reserved: u8,
}

/// One of ztunnel's listeners in a pod.
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
    /// Captured connections of the pod over IPv4.
    OutboundV4 = 4,
    /// Captured connections of the pod over IPv6.
    OutboundV6 = 5,
}

impl ListenerSlot {
    /// Every slot.
    pub const ALL: [Self; 6] = [
        Self::HboneV4,
        Self::HboneV6,
        Self::PlaintextV4,
        Self::PlaintextV6,
        Self::OutboundV4,
        Self::OutboundV6,
    ];
}

/// Key of a listener in a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct ListenerKey {
    /// The pod's network namespace.
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

/// Key of a hand-off: a connection inside a pod, as seen from either end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct HandoffKey {
    /// The pod's network namespace.
    pub netns: NetnsCookie,
    /// The connecting end's address.
    pub client: Address,
    /// The connecting end's port, in host byte order.
    pub client_port: u16,
    /// The accepting end's port, in host byte order.
    pub server_port: u16,
    /// Zero.
    pub reserved: u32,
}

/// What the connecting end leaves for the accepting end. It is made when the SYN is sent, taken when the
/// connection is established, and removed when the connecting socket closes before that.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Handoff {
    /// Cookie of the connecting socket.
    pub owner: u64,
    /// Address of the accepted socket; see [`Role`].
    pub address: Address,
    /// Port of `address`, in host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// [`Role`] of the accepted socket.
    pub role: u32,
    /// The endpoint that the kernel chose for the connection, or unset.
    pub endpoint: SocketAddress,
    /// Zero.
    pub unused: u32,
}

/// The part of a socket in the mesh, and the meaning of its address.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An app's captured client socket; the address is the original destination.
    Client = 1,
    /// ztunnel's own socket to a peer; the hooks ignore it.
    Outbound = 2,
    /// ztunnel's own socket to an app; the address is the real client's.
    Inbound = 3,
    /// ztunnel's accepted socket of a captured connection; the address is the original destination.
    Captured = 4,
    /// An app's accepted socket; the address is the real client's.
    Server = 5,
    /// An app's client socket on the direct path; the address is the original destination.
    DirectClient = 6,
}

/// State of the mesh in a socket's own storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Socket {
    /// [`Role`].
    pub role: u32,
    /// Port of `address`, in host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// See [`Role`].
    pub address: Address,
    /// Key of a connecting socket's hand-off; all zero while there is none.
    pub handoff: HandoffKey,
    /// The endpoint that the kernel chose, or unset. `DirectClient`: where the connection must go.
    pub endpoint: SocketAddress,
    /// Zero.
    pub unused: u32,
    /// `DirectClient`: the connecting workload.
    pub source: WorkloadNumber,
    /// `DirectClient`: the destination's workload.
    pub destination: WorkloadNumber,
    /// `DirectClient`: the generation of the verdict.
    pub generation: u64,
}

impl Socket {
    /// A socket with a role and its address.
    #[inline(always)]
    pub const fn new(role: Role, address: Address, port: u16) -> Self {
        let handoff = HandoffKey {
            netns: NetnsCookie(0),
            client: Address([0; 4]),
            client_port: 0,
            server_port: 0,
            reserved: 0,
        };
        Self {
            role: role as u32,
            port,
            reserved: 0,
            address,
            handoff,
            endpoint: SocketAddress::UNSET,
            unused: 0,
            source: WorkloadNumber::NONE,
            destination: WorkloadNumber::NONE,
            generation: 0,
        }
    }
}

// The sizes are part of the interface: a change takes a new version.
const _: () = {
    assert!(size_of::<Daemon>() == 16);
    assert!(size_of::<Pod>() == 16);
    assert!(size_of::<PodName>() == 512);
    assert!(size_of::<PartKey>() == 20);
    assert!(size_of::<PortKey>() == 16);
    assert!(size_of::<PortRule>() == 4);
    assert!(size_of::<ListenerKey>() == 16);
    assert!(size_of::<HandoffKey>() == 32);
    assert!(size_of::<Handoff>() == 56);
    assert!(size_of::<Socket>() == 104);
};
