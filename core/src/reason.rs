//! Why a connection was refused, failed or ended: [`Reason`], the one list for logs, metrics and statuses.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a connection was refused, failed or ended. Names are stable: they appear in logs, metrics and
        /// statuses.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name, in `snake_case`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    // Found by the kernel programs. Each has its code in `ambit-abi`.
    /// `connect()`: ztunnel has no listener of this address family in the pod.
    OutboundListenerMissing => "outbound_listener_missing",
    /// `connect()`: the pod has too many connections that ztunnel has not accepted yet.
    HandoffsExhausted => "handoffs_exhausted",
    /// The kernel had no memory for the state of the connection.
    KernelMemory => "kernel_memory",
    /// `connect()` by ztunnel to an application: the pod is not enrolled.
    PodUnknown => "pod_unknown",
    /// Inbound tunnel: ztunnel does not listen for the pod.
    HboneListenerMissing => "hbone_listener_missing",
    /// Inbound plaintext that needs authorization: ztunnel does not listen for the pod.
    PlaintextListenerMissing => "plaintext_listener_missing",
    /// Inbound plaintext to a pod that accepts mutual TLS only.
    PlaintextRefused => "plaintext_refused",
    /// A connection was established, but the hand-off to the accepting socket failed.
    HandoffLost => "handoff_lost",
    /// A direct connection arrived under a stale verdict: the policy changed after `connect()`.
    FlowStale => "flow_stale",
    /// Another program of the hook changed the destination of a direct connection.
    FlowMisdirected => "flow_misdirected",
    /// A connection is not tracked because there are too many flows.
    FlowsExhausted => "flows_exhausted",
    /// A direct connection is not tracked because another flow has its addresses and ports.
    FlowTaken => "flow_taken",
    /// The client's socket was closed before the direct connection was established.
    FlowGone => "flow_gone",
    /// The ring buffer had no room for a record.
    RecordLost => "record_lost",
    /// The pods' links changed after `connect()`: there may be no direct connection between them.
    LinkLost => "link_lost",
    /// A SYN or SYN-ACK of a direct connection did not come from its pod's own link, or carried data.
    LinkHandshakeForged => "link_handshake_forged",
    /// A packet of a direct connection did not come from its pod's own link.
    LinkPacketForged => "link_packet_forged",
    /// A packet between two pods hides its TCP header (IP options, fragments, extension headers, VLAN tags).
    LinkPacketHidden => "link_packet_hidden",
    /// An ARP or NDP message claims a pod's address for another interface.
    LinkNeighbourForged => "link_neighbour_forged",
    /// A connection from a process of the node is not listed because there are too many: it does not pass as
    /// a probe.
    ProbesExhausted => "probes_exhausted",
    /// `connect()`: the socket is bound to a device, over which ztunnel's listener cannot be reached.
    DeviceBound => "device_bound",

    // Decided by this crate: each variant of `Denial` has one of the same name.
    /// The client's workload is unknown.
    SourceUnknown => "source_unknown",
    /// No service and no workload has the address.
    DestinationUnknown => "destination_unknown",
    /// The service does not declare the port.
    ServicePortUnknown => "service_port_unknown",
    /// No endpoint may serve the port now.
    NoEndpoint => "no_endpoint",
    /// The destination's waypoint has no ready endpoint.
    WaypointUnavailable => "waypoint_unavailable",
    /// A policy needs the destination's waypoint, which was never programmed.
    WaypointNotProgrammed => "waypoint_not_programmed",
    /// The workload takes only what has passed its waypoint.
    WaypointRequired => "waypoint_required",
    /// The destination does not have this waypoint.
    NotFronted => "not_fronted",
    /// The server's workload is unknown.
    WorkloadUnknown => "workload_unknown",
    /// The requested port is one of the mesh's own.
    ReservedPort => "reserved_port",
    /// The requested address is not one of the workload's.
    AddressMismatch => "address_mismatch",
    /// A DENY policy matched.
    PolicyDenied => "policy_denied",
    /// ALLOW policies exist and none matched.
    PolicyNotAllowed => "policy_not_allowed",
    /// A policy that selects the workload is not known.
    PolicyMissing => "policy_missing",

    // Found by a proxy.
    /// An application dialled ztunnel's own listener.
    OriginalDestinationMissing => "original_destination_missing",
    /// The controller has not sent a whole configuration yet.
    NotSynchronized => "not_synchronized",
    /// There is no certificate for the workload.
    CertificateMissing => "certificate_missing",
    /// The port has routes of connections, and none matches this one.
    RouteMissing => "route_missing",
    /// The route's backend leads to nothing.
    BackendInvalid => "backend_invalid",
    /// Connecting to the peer failed.
    ConnectFailed => "connect_failed",
    /// Connecting took too long.
    ConnectTimeout => "connect_timeout",
    /// The TLS handshake failed, or the peer's identity is not one of the expected.
    TlsFailed => "tls_failed",
    /// The HTTP/2 connection to the peer failed.
    TunnelFailed => "tunnel_failed",
    /// The peer refused the tunnel.
    TunnelRefused => "tunnel_refused",
    /// The peer's request is malformed.
    BadRequest => "bad_request",
    /// The client or the server reset the connection.
    Reset => "reset",
    /// The daemon's drain time was over before the connection ended.
    Drained => "drained",
    /// Both directions were closed in order.
    Closed => "closed",
    /// The connection's task ended before the connection did: a fault of the daemon's.
    Abandoned => "abandoned",
    /// The direct path was switched off for the client or the server: the next connection takes the tunnel.
    DirectDisabled => "direct_disabled",
    /// The destination now demands TLS on its own node too: the next connection takes the tunnel.
    TlsDemanded => "tls_demanded",

    // Limits of a proxy.
    /// The pod has its share of the daemon's descriptors in use.
    PodConnectionsExhausted => "pod_connections_exhausted",
    /// The peer, or all peers together, have as many tunnel connections to the pod as they may.
    PeerConnectionsExhausted => "peer_connections_exhausted",
    /// Too many TLS handshakes are in progress.
    HandshakesExhausted => "handshakes_exhausted",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Reason;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
