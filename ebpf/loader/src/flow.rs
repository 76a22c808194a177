//! Connections that no daemon carries, and records of them, in plain types.

use std::net::SocketAddr;

use ambit_abi::{KernelReason, NetnsCookie, Path, Place, RecordKind, Tuple, WorkloadNumber};

/// A connection that the kernel lets pass by itself and that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Direct or native.
    pub path: Path,
    /// The client's address; where the daemon closes the connection, it names it so.
    pub client: SocketAddr,
    /// The server's address.
    pub server: SocketAddr,
    /// The client, where the kernel knows it for certain.
    pub source: Option<WorkloadNumber>,
    /// The server.
    pub destination: WorkloadNumber,
    /// The destination's generation when the kernel let it pass.
    pub generation: u64,
    /// Cookie of the client's socket.
    pub client_cookie: Option<u64>,
    /// Cookie of the server's socket; none while the connection is not established.
    pub server_cookie: Option<u64>,
    /// The client's namespace.
    pub client_netns: Option<NetnsCookie>,
    /// The server's namespace; none while the connection is not established.
    pub server_netns: Option<NetnsCookie>,
    /// Nanoseconds of the monotonic clock.
    pub opened: u64,
    /// What the client asked for, where the kernel knows it.
    pub asked: Option<SocketAddr>,
    /// From this node to a port that the pod declares as a probe: passes under any policy.
    pub probe: bool,
}

/// What the kernel tells about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What happened.
    pub kind: RecordKind,
    /// The path it took, or would have taken.
    pub path: Path,
    /// Why it was refused or how it ended.
    pub reason: Option<KernelReason>,
    /// The client, where its address is one of an enrolled pod's.
    pub source: Option<WorkloadNumber>,
    /// The server, where it is enrolled here.
    pub destination: Option<WorkloadNumber>,
    /// The server's namespace, and the client's for a refused `connect()`.
    pub netns: NetnsCookie,
    /// Cookie of the server's socket.
    pub server_cookie: Option<u64>,
    /// The client's address; none for a refused `connect()`.
    pub client: Option<SocketAddr>,
    /// The server's address.
    pub server: SocketAddr,
    /// What the client asked for, where the kernel knows it.
    pub asked: Option<SocketAddr>,
    /// Bytes that the client's app sent.
    pub from_client: u64,
    /// Bytes that the server's app sent.
    pub from_server: u64,
    /// Nanoseconds of the monotonic clock; 0 where nothing was opened.
    pub opened: u64,
    /// Nanoseconds of the monotonic clock.
    pub at: u64,
    /// From this node to a port that the pod declares as a probe.
    pub probe: bool,
}

fn socket(place: Place) -> Option<SocketAddr> {
    (!place.is_none()).then(|| place.address.with_port(place.port))
}

fn known<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

impl Flow {
    pub(crate) fn new(tuple: Tuple, flow: ambit_abi::Flow) -> Self {
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
            asked: socket(flow.asked),
            probe: flow.flags & ambit_abi::Flow::PROBE != 0,
        }
    }
}

impl Record {
    /// None: of a kind that this build does not know.
    pub(crate) fn new(record: &ambit_abi::Record) -> Option<Self> {
        let tuple = record.tuple;
        Some(Self {
            kind: RecordKind::from_number(record.kind)?,
            path: Path::from_number(record.path)?,
            reason: KernelReason::from_number(record.reason),
            source: known(record.source),
            destination: known(record.destination),
            netns: record.netns,
            server_cookie: known(record.server_cookie),
            client: socket(Place::new(tuple.client, tuple.client_port)),
            server: tuple.server.with_port(tuple.server_port),
            asked: socket(record.asked),
            from_client: record.from_client,
            from_server: record.from_server,
            opened: record.opened,
            at: record.at,
            probe: record.flags & ambit_abi::Flow::PROBE != 0,
        })
    }
}
