//! Names of maps and programs, in the object and as pins.

/// [`NetnsCookie`](crate::NetnsCookie) → [`Pod`](crate::Pod): the enrolled pods.
pub const PODS: &str = "PODS";
/// [`NetnsCookie`](crate::NetnsCookie) → [`PodName`](crate::PodName); read by daemons only.
pub const POD_NAMES: &str = "POD_NAMES";
/// [`NetnsCookie`](crate::NetnsCookie) → `u64`: the pod's number of entries in `HANDOFFS`, and
/// [`NetnsCookie::ALL`](crate::NetnsCookie::ALL) all pods'.
pub const POD_HANDOFFS: &str = "POD_HANDOFFS";
/// [`PortKey`](crate::PortKey) → [`PortRule`](crate::PortRule).
pub const PORTS: &str = "PORTS";
/// 0 → [`Daemon`](crate::Daemon); read by daemons only.
pub const DAEMON: &str = "DAEMON";
/// 0 → [`NetnsCookie`](crate::NetnsCookie): the node's network namespace, whose processes send probes; 0: the
/// machine's first.
pub const HOST: &str = "HOST";
/// [`Tuple`](crate::Tuple) → `u64`: open connections from processes of the node to pods, with the cookie of
/// the connecting socket.
pub const PROBES: &str = "PROBES";
/// [`Address`](crate::Address) → [`Destination`](crate::Destination): captured destinations.
pub const DESTINATIONS: &str = "DESTINATIONS";
/// [`PartKey`](crate::PartKey) → `u8`: what is captured of destinations that are captured in part.
pub const PARTS: &str = "PARTS";
/// 0 → `u32`: 1 while `DESTINATIONS` lacks some for want of room. Then every destination is captured, and the
/// daemon decides.
pub const DESTINATIONS_INCOMPLETE: &str = "DESTINATIONS_INCOMPLETE";
/// [`ListenerKey`](crate::ListenerKey) → ztunnel's listening socket.
pub const LISTENERS: &str = "LISTENERS";
/// [`HandoffKey`](crate::HandoffKey) → [`Handoff`](crate::Handoff).
pub const HANDOFFS: &str = "HANDOFFS";
/// Socket storage: [`Socket`](crate::Socket).
pub const SOCKETS: &str = "SOCKETS";
/// [`KernelReason`](crate::KernelReason) → `u64` for each CPU: the number of refusals.
pub const REFUSALS: &str = "REFUSALS";

/// [`WorkloadNumber`](crate::WorkloadNumber) → `u64`: the generation of a destination's policy.
pub const GENERATIONS: &str = "GENERATIONS";
/// [`VerdictKey`](crate::VerdictKey) → [`VerdictEntry`](crate::VerdictEntry).
pub const VERDICTS: &str = "VERDICTS";
/// [`Lease`](crate::Lease) → `u64`: the lease's end, in nanoseconds of the monotonic clock.
pub const LEASE: &str = "LEASE";
/// [`Address`](crate::Address) → [`WorkloadNumber`](crate::WorkloadNumber): the pod that probably has the
/// address; for reports, and for which connections of the node are listed, never for decisions.
pub const LOCALS: &str = "LOCALS";
/// [`SocketAddress`](crate::SocketAddress) → [`Service`](crate::Service).
pub const SERVICES: &str = "SERVICES";
/// [`SlotKey`](crate::SlotKey) → [`Slot`](crate::Slot).
pub const ENDPOINTS: &str = "ENDPOINTS";
/// [`AffinityKey`](crate::AffinityKey) → [`SocketAddress`](crate::SocketAddress): the client's endpoint.
pub const STICKY: &str = "STICKY";
/// [`Tuple`](crate::Tuple) → [`FlowEntry`](crate::FlowEntry).
pub const FLOWS: &str = "FLOWS";
/// [`NetnsCookie`](crate::NetnsCookie) → `u64`: the pod's number of entries in `FLOWS`, and
/// [`NetnsCookie::ALL`](crate::NetnsCookie::ALL) all pods'.
pub const POD_FLOWS: &str = "POD_FLOWS";
/// [`WorkloadNumber`](crate::WorkloadNumber) → [`LinkEntry`](crate::LinkEntry): the links of enrolled pods.
pub const LINKS: &str = "LINKS";
/// [`Tuple`](crate::Tuple) → [`LinkFlow`](crate::LinkFlow): direct connections between shared links.
pub const LINK_FLOWS: &str = "LINK_FLOWS";
/// [`NetnsCookie`](crate::NetnsCookie) → `u64`: the pod's number of entries in `LINK_FLOWS`, and
/// [`NetnsCookie::ALL`](crate::NetnsCookie::ALL) all pods'.
pub const POD_LINK_FLOWS: &str = "POD_LINK_FLOWS";
/// Socket storage of servers' sockets: [`Accepted`](crate::Accepted).
pub const ACCEPTED: &str = "ACCEPTED";
/// Socket storage: `u8`, set on ztunnel's own listeners and inherited by the sockets they accept.
pub const OWN: &str = "OWN";
/// The ring buffer of [`RecordEntry`](crate::RecordEntry) values about established connections.
pub const RECORDS: &str = "RECORDS";
/// The ring buffer of [`RecordEntry`](crate::RecordEntry) values about refused connections, of which a pod's
/// budget lets some in.
pub const REFUSAL_RECORDS: &str = "REFUSAL_RECORDS";
/// [`NetnsCookie`](crate::NetnsCookie) → [`RefusalBudget`](crate::RefusalBudget).
pub const POD_REFUSALS: &str = "POD_REFUSALS";

/// The ring buffer of log messages; only in builds with logging. `aya-log` gives it its name.
pub const LOG: &str = "AYA_LOGS";

/// Every map that is pinned, in all builds.
pub const MAPS: [&str; 31] = [
    PODS,
    POD_NAMES,
    POD_HANDOFFS,
    PORTS,
    DAEMON,
    HOST,
    PROBES,
    DESTINATIONS,
    PARTS,
    DESTINATIONS_INCOMPLETE,
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
    LINKS,
    LINK_FLOWS,
    POD_LINK_FLOWS,
    ACCEPTED,
    OWN,
    RECORDS,
    REFUSAL_RECORDS,
    POD_REFUSALS,
];

/// The programs on the cgroup. The pins of their links begin with these names.
pub const CGROUP_PROGRAMS: [&str; 5] =
    ["connect4", "connect6", "getpeername4", "getpeername6", "socket_operations"];
/// The program on each enrolled network namespace.
pub const INBOUND_PROGRAM: &str = "inbound";
/// The programs at the node's end of a shared link: on what comes from the pod, and on what goes to it.
pub const LINK_PROGRAMS: [&str; 2] = ["from_pod", "to_pod"];
/// Read-only variable of the inbound program: the cookie of its network namespace.
pub const INBOUND_COOKIE: &str = "NETNS_COOKIE";
/// Read-only variable of the programs on the cgroup: 1 if the kernel supports Multipath TCP.
pub const MULTIPATH: &str = "MULTIPATH";
