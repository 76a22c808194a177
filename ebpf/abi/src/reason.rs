//! Why the kernel programs refused a connection, and how one ended.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal;)*) => {
        /// Why the kernel programs refused a connection, or how one ended. Numbers are stable: they index
        /// the kernel's counters and stand in records.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum KernelReason { $($(#[$doc])* $variant = $number,)* }

        impl KernelReason {
    /// Whether it counts packets that the programs on shared links dropped, not connections.
    pub const fn is_of_packets(self) -> bool {
        matches!(
            self,
            Self::LinkHandshakeForged
                | Self::LinkPacketForged
                | Self::LinkPacketHidden
                | Self::LinkNeighbourForged
        )
    }

            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The reason with this number.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    // Counted.
    /// `connect()`: ztunnel has no listener of this address family in the pod.
    OutboundListenerMissing = 0;
    /// `connect()`: the pod has too many connections that ztunnel has not accepted yet.
    HandoffsExhausted = 1;
    /// The kernel had no memory for the state of the connection.
    KernelMemory = 2;
    /// `connect()` by ztunnel to an application: the pod is not enrolled.
    PodUnknown = 3;
    /// Inbound tunnel: ztunnel does not listen for the pod.
    HboneListenerMissing = 4;
    /// Inbound plaintext that needs authorization: ztunnel does not listen for the pod.
    PlaintextListenerMissing = 5;
    /// Inbound plaintext to a pod that accepts mutual TLS only.
    PlaintextRefused = 6;
    /// A connection was established, but the hand-off to the accepting socket failed.
    HandoffLost = 7;
    /// A direct connection arrived under a stale verdict: the policy changed after `connect()`.
    FlowStale = 8;
    /// Another program of the hook changed the destination of a direct connection.
    FlowMisdirected = 9;
    /// A connection is not tracked because the whole map of flows is full: the daemon closes it. At its pod's
    /// share the daemon carries it instead.
    FlowsExhausted = 10;
    /// A direct connection is not tracked because another flow has its addresses and ports.
    FlowTaken = 11;
    /// The client's socket was closed before the direct connection was established.
    FlowGone = 12;
    /// The ring buffer had no room for a record.
    RecordLost = 13;
    /// `connect()`: the socket is bound to a device, over which ztunnel's listener cannot be reached.
    DeviceBound = 14;
    /// A direct connection is not tracked because the pods' links changed after `connect()`, or because there
    /// are too many between shared links.
    LinkLost = 30;

    // Counted: packets, dropped by the programs on shared links.
    /// A SYN or SYN-ACK of a direct connection did not come from its pod's own link, or carried data.
    LinkHandshakeForged = 31;
    /// A packet of a direct connection did not come from its pod's own link.
    LinkPacketForged = 32;
    /// A packet between two pods hides its TCP header (IP options, fragments, extension headers, VLAN tags).
    LinkPacketHidden = 33;
    /// An ARP or NDP message claims a pod's address for another interface.
    LinkNeighbourForged = 34;
    /// A connection from a process of the node is not listed because there are too many: no probe port lets
    /// it pass.
    ProbesExhausted = 20;

    // In records only: how an established connection ended.
    /// The client or the server reset the connection.
    Reset = 36;
    /// Both directions were closed in order.
    Closed = 38;
}

impl KernelReason {
    /// How many counters the kernel's array has: room for reasons of later programs.
    pub const COUNTERS: u32 = 64;
}

#[cfg(test)]
mod tests {
    use super::KernelReason;

    #[test]
    fn numbers_have_counters_and_convert_back() {
        for reason in KernelReason::ALL {
            assert!((*reason as u32) < KernelReason::COUNTERS, "{reason:?} has no counter");
            assert_eq!(KernelReason::from_number(*reason as u32), Some(*reason));
        }
    }
}
