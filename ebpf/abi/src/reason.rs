//! Why a connection was refused: one list for kernel counters, logs, metrics and statuses.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// Why a connection was refused or ended early. Numbers and names are stable: numbers index kernel
        /// counters, names appear in logs, metrics and statuses.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $variant = $number,)* }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The reason with this number.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// The stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    // Found by the kernel programs.
    /// `connect()`: ztunnel has no listener of this family in the pod (yet, or any more).
    OutboundListenerMissing = 0, "outbound_listener_missing";
    /// `connect()`: the pod has too many connections that ztunnel has not taken yet.
    HandoffsExhausted = 1, "handoffs_exhausted";
    /// `connect()`: the kernel had no memory for what capture must remember.
    KernelMemory = 2, "kernel_memory";
    /// `connect()` by ztunnel towards an app: the pod is not enrolled (any more).
    PodUnknown = 3, "pod_unknown";
    /// Arriving tunnel: ztunnel does not listen for the pod.
    HboneListenerMissing = 4, "hbone_listener_missing";
    /// Arriving plaintext that must be checked: ztunnel does not listen for the pod.
    PlaintextListenerMissing = 5, "plaintext_listener_missing";
    /// Arriving plaintext where the pod takes only mutual TLS.
    PlaintextRefused = 6, "plaintext_refused";
    /// A connection was made, but its other end could not be told about it.
    HandoffLost = 7, "handoff_lost";
    /// A direct connection arrived whose verdict is no longer current: the policy changed on its way.
    FlowStale = 8, "flow_stale";
    /// A direct connection went elsewhere than it was let pass for: another program of the hook changed where.
    FlowMisdirected = 9, "flow_misdirected";
    /// A connection was not listed, because there are too many. At its pod's cap the daemon carries it instead; only where the
    /// whole list is full does a native one pass unlisted.
    FlowsExhausted = 10, "flows_exhausted";
    /// A direct connection was not listed, because its addresses and ports are another's.
    FlowTaken = 11, "flow_taken";
    /// A direct connection was established when its client's end had closed already.
    FlowGone = 12, "flow_gone";
    /// A record did not fit into the ring buffer.
    RecordLost = 13, "record_lost";

    // Decided by ztunnel; the names are those of the core's denials.
    /// The client's workload is unknown.
    SourceUnknown = 16, "source_unknown";
    /// Nothing known has the address.
    DestinationUnknown = 17, "destination_unknown";
    /// The service does not declare the port.
    ServicePortUnknown = 18, "service_port_unknown";
    /// No endpoint may serve the port now.
    NoEndpoint = 19, "no_endpoint";
    /// Only a waypoint may carry it.
    WaypointUnsupported = 20, "waypoint_unsupported";
    /// The server's workload is unknown.
    WorkloadUnknown = 21, "workload_unknown";
    /// One of the mesh's own ports was asked for.
    ReservedPort = 22, "reserved_port";
    /// The address asked for is not the pod's.
    AddressMismatch = 23, "address_mismatch";
    /// A DENY policy matched.
    PolicyDenied = 24, "policy_denied";
    /// ALLOW policies exist and none matched.
    PolicyNotAllowed = 25, "policy_not_allowed";
    /// A policy that selects the workload is not known.
    PolicyMissing = 26, "policy_missing";
    /// An app dialled ztunnel's own listener.
    OriginalDestinationMissing = 27, "original_destination_missing";
    /// The controller has not sent a whole configuration yet.
    NotSynchronized = 28, "not_synchronized";
    /// There is no certificate for the workload.
    CertificateMissing = 29, "certificate_missing";
    /// The other end could not be connected to.
    ConnectFailed = 30, "connect_failed";
    /// Making the connection took too long.
    ConnectTimeout = 31, "connect_timeout";
    /// The TLS handshake failed: one of the ends is not who it should be.
    TlsFailed = 32, "tls_failed";
    /// The HTTP/2 connection between the daemons failed.
    TunnelFailed = 33, "tunnel_failed";
    /// The other daemon refused the tunnel.
    TunnelRefused = 34, "tunnel_refused";
    /// The other daemon's request makes no sense.
    BadRequest = 35, "bad_request";
    /// One of the ends reset the connection.
    Reset = 36, "reset";
    /// The daemon ended before the connection did.
    Drained = 37, "drained";
    /// It ended in order: both directions were closed.
    Closed = 38, "closed";
    /// Its task in the daemon ended before it did: a fault of the daemon's.
    Abandoned = 39, "abandoned";
    /// The direct path was switched off for one of the ends: the next connection takes the tunnel.
    DirectDisabled = 40, "direct_disabled";
    /// The destination has come to demand TLS on its own node too: the next connection takes the tunnel.
    TlsDemanded = 41, "tls_demanded";

    // Bounds of the daemon.
    /// The pod holds its share of the daemon's descriptors.
    PodConnectionsExhausted = 48, "pod_connections_exhausted";
    /// The peer, or all peers together, have as many tunnel connections to the pod as they may.
    PeerConnectionsExhausted = 49, "peer_connections_exhausted";
    /// Too many peers are about to prove who they are.
    HandshakesExhausted = 50, "handshakes_exhausted";
}

impl Reason {
    /// How many counters the kernel's array has: room for reasons of later programs.
    pub const COUNTERS: u32 = 64;
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn numbers_fit_and_names_differ() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert!((*reason as u32) < Reason::COUNTERS, "{reason:?} has no counter");
            assert_eq!(Reason::from_number(*reason as u32), Some(*reason));
            assert!(
                Reason::ALL[..index].iter().all(|other| other.name() != reason.name()),
                "{reason:?} shares its name"
            );
        }
    }
}
