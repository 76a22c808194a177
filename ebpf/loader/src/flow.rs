//! Tracked flows and records of them, in plain types.

use std::net::SocketAddr;

use ambit_abi::{KernelReason, NetnsCookie, Path, RecordKind, SocketAddress, Tuple, WorkloadNumber};

/// An open connection that no daemon carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// [`Path::Direct`] or [`Path::Native`].
    pub path: Path,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The server's address and port.
    pub server: SocketAddr,
    /// The client's workload, where the kernel knows it for certain.
    pub source: Option<WorkloadNumber>,
    /// The server's workload.
    pub destination: WorkloadNumber,
    /// The destination's generation when the kernel allowed it.
    pub generation: u64,
    /// Cookie of the client's socket.
    pub client_cookie: Option<u64>,
    /// Cookie of the server's socket; none until the connection is established.
    pub server_cookie: Option<u64>,
    /// The client's network namespace.
    pub client_netns: Option<NetnsCookie>,
    /// The server's network namespace; none until the connection is established.
    pub server_netns: Option<NetnsCookie>,
    /// When it was opened, in nanoseconds of the monotonic clock.
    pub opened: u64,
    /// The destination that the client passed to `connect()`, where the kernel knows it.
    pub original_destination: Option<SocketAddr>,
    /// From this node to a port that the pod declares as a probe; allowed under any policy.
    pub probe: bool,
}

/// An event of a connection that the kernel reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The event.
    pub kind: RecordKind,
    /// The path it took, or would have taken.
    pub path: Path,
    /// The reason of a refusal or end.
    pub reason: Option<KernelReason>,
    /// The client's workload, if its address is an enrolled pod's.
    pub source: Option<WorkloadNumber>,
    /// The server's workload, if it is enrolled on this node.
    pub destination: Option<WorkloadNumber>,
    /// The network namespace of the server, or of the client for a refused `connect()`.
    pub netns: NetnsCookie,
    /// Cookie of the server's socket.
    pub server_cookie: Option<u64>,
    /// The client's address; none for a refused `connect()`.
    pub client: Option<SocketAddr>,
    /// The server's address.
    pub server: SocketAddr,
    /// The destination that the client passed to `connect()`, where the kernel knows it.
    pub original_destination: Option<SocketAddr>,
    /// Bytes that the client's app sent. In a refusal: how many connections were refused at the pod until
    /// now, with those that left no record.
    pub from_client: u64,
    /// Bytes that the server's app sent.
    pub from_server: u64,
    /// When the connection was opened, in nanoseconds of the monotonic clock; 0 if it was not.
    pub opened: u64,
    /// When the record was written, in nanoseconds of the monotonic clock.
    pub at: u64,
    /// From this node to a port that the pod declares as a probe.
    pub probe: bool,
}

fn set(address: SocketAddress) -> Option<SocketAddr> {
    (!address.is_unset()).then(|| address.address.with_port(address.port))
}

fn known<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

impl Flow {
    pub(crate) fn new(tuple: Tuple, flow: ambit_abi::FlowEntry) -> Self {
        Self {
            path: Path::from_number(flow.path).unwrap_or(Path::Native),
            client: tuple.client.with_port(tuple.client_port),
            server: tuple.server.with_port(tuple.server_port),
            source: known(flow.source),
            destination: flow.destination,
            generation: flow.generation,
            client_cookie: known(flow.client_cookie),
            server_cookie: known(flow.server_cookie),
            client_netns: known(flow.client_netns),
            server_netns: known(flow.server_netns),
            opened: flow.opened,
            original_destination: set(flow.original_destination),
            probe: flow.flags & ambit_abi::FlowEntry::PROBE != 0,
        }
    }
}

impl Record {
    /// None: this build does not know the kind.
    pub(crate) fn new(record: &ambit_abi::RecordEntry) -> Option<Self> {
        let tuple = record.tuple;
        Some(Self {
            kind: RecordKind::from_number(record.kind)?,
            path: Path::from_number(record.path)?,
            reason: KernelReason::from_number(record.reason),
            source: known(record.source),
            destination: known(record.destination),
            netns: record.netns,
            server_cookie: known(record.server_cookie),
            client: set(SocketAddress::new(tuple.client, tuple.client_port)),
            server: tuple.server.with_port(tuple.server_port),
            original_destination: set(record.original_destination),
            from_client: record.from_client,
            from_server: record.from_server,
            opened: record.opened,
            at: record.at,
            probe: record.flags & ambit_abi::FlowEntry::PROBE != 0,
        })
    }
}
