//! The access log record: one event of target `access` when a connection has ended, with Istio's fields.
//!
//! Entry point: [`write()`].

use std::net::SocketAddr;
use std::time::Duration;

use ambit_core::model::{Identity, Workload};

use super::connection::{Bytes, ConnectionInfo, Direction, Ending, Party};

/// What filters call these events.
const TARGET: &str = "access";

/// Writes the record: at INFO when the connection ended in order, at WARN when it did not.
pub(super) fn write(connection: &ConnectionInfo, bytes: Bytes, duration: Duration, ending: &Ending) {
    // The level of an event is fixed where it is written, so there are two.
    macro_rules! record {
        ($level:expr) => {
            if tracing::enabled!(target: TARGET, $level) {
                let record = Record::new(connection, bytes, duration);
                tracing::event!(
                    target: TARGET,
                    parent: None,
                    $level,
                    src.addr = %record.source.address,
                    src.workload = record.source.workload,
                    src.namespace = record.source.namespace,
                    src.identity = record.source.identity.map(display),
                    dst.addr = %record.destination.address,
                    dst.hbone_addr = connection.hbone_address.map(display),
                    dst.service = connection.service.as_deref().map(|service| &*service.key.hostname),
                    dst.workload = record.destination.workload,
                    dst.namespace = record.destination.namespace,
                    dst.identity = record.destination.identity.map(display),
                    direction = record.direction,
                    path = connection.path.as_str(),
                    bytes_sent = record.bytes_sent,
                    bytes_recv = record.bytes_recv,
                    duration = record.duration,
                    reason = ending.reason.name(),
                    policy = ending.policy.as_ref().map(display),
                    error = ending.error.as_deref(),
                    "connection complete"
                );
            }
        };
    }
    if ending.error.is_some() {
        record!(tracing::Level::WARN);
    } else {
        record!(tracing::Level::INFO);
    }
}

struct Record<'a> {
    source: PartyFields<'a>,
    destination: PartyFields<'a>,
    direction: &'static str,
    bytes_sent: u64,
    bytes_recv: u64,
    duration: String,
}

struct PartyFields<'a> {
    address: SocketAddr,
    workload: Option<&'a str>,
    namespace: Option<&'a str>,
    identity: Option<&'a Identity>,
}

impl<'a> Record<'a> {
    fn new(connection: &'a ConnectionInfo, bytes: Bytes, duration: Duration) -> Self {
        // "Sent" in the log is what the workload of this node sent.
        let (bytes_sent, bytes_recv) = match connection.direction {
            Direction::Outbound => (bytes.from_client, bytes.from_server),
            Direction::Inbound | Direction::Through => (bytes.from_server, bytes.from_client),
        };
        Self {
            source: PartyFields::new(&connection.source, connection.proven()),
            destination: PartyFields::new(&connection.destination, connection.proven()),
            direction: connection.direction.as_str(),
            bytes_sent,
            bytes_recv,
            duration: format!("{}ms", duration.as_millis()),
        }
    }
}

impl<'a> PartyFields<'a> {
    fn new(party: &'a Party, proven: bool) -> Self {
        let workload = party.workload.as_deref();
        Self {
            address: party.address,
            workload: workload.map(pod_name),
            namespace: workload.map(|workload| &*workload.namespace),
            identity: party.identity.as_ref().filter(|_| proven),
        }
    }
}

/// Logs tell single pods apart, unlike metrics.
fn pod_name(workload: &Workload) -> &str {
    if workload.name.is_empty() { &workload.canonical_name } else { &workload.name }
}
