//! What the kernel saw, reported as other paths report it: [`drain`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ambit_core::Reason;
use ambit_core::mesh::Mesh;
use ambit_core::model::{PolicyKey, WorkloadUid};
use ambit_daemon_kit::telemetry::connection::observed;
use ambit_daemon_kit::telemetry::connection::{Bytes, Ending};
use ambit_loader::{KernelReason, Path, Record, RecordKind};

use super::facts::Seen;
use super::{Whom, flows};
use crate::daemon::Node;
use crate::{reason, report};

/// Reports what the kernel recorded since the last time. Returns whose connections must be looked at again.
///
/// Before the mesh is known nothing can be named: records wait in the kernel, which counts those it has no
/// room for.
pub(super) fn drain(node: &Node) -> Whom {
    let Some(mesh) = node.state.mesh() else { return Whom::nobody() };
    let _one_at_a_time = node.direct.draining.lock();
    node.direct.counted.begin();
    take_all(node, &mesh)
}

/// [`drain`], for who holds the lock.
pub(super) fn take_all(node: &Node, mesh: &Mesh) -> Whom {
    let mut again = BTreeSet::new();
    let mut each = |record: Record| again.extend(take(node, mesh, &record));
    if let Err(error) = node.kernel.dataplane().records(&mut each) {
        tracing::error!(error = report::chain(&error), "reading the kernel's records");
    }
    Whom::These(again)
}

/// The destination, if its connections must be looked at again.
fn take(node: &Node, mesh: &Mesh, record: &Record) -> Option<WorkloadUid> {
    let direct = &node.direct;
    let reports = Seen::from(record).reports(mesh, &direct.names);
    match record.kind {
        RecordKind::Opened => {
            reports.iter().for_each(observed::opened);
            return let_in_by_old_rules(node, mesh, record);
        }
        RecordKind::Closed => {
            let ending = record.client.and_then(|client| was_cut(node, client, record.server));
            let ending = ending.unwrap_or_else(|| closed(record.reason.map(reason::from_kernel)));
            let total = Bytes { from_client: record.from_client, from_server: record.from_server };
            let carried = direct.counted.closed(record.server_cookie, total);
            let duration = Duration::from_nanos(record.at.saturating_sub(record.opened));
            for facts in &reports {
                observed::closed(facts, carried, duration, &ending);
            }
        }
        RecordKind::Refused => {
            let ending = by_policy(node, mesh, record)
                .unwrap_or_else(|| refused(record.reason.map(reason::from_kernel)));
            for facts in &reports {
                observed::refused(facts, &ending);
            }
        }
        RecordKind::Stale => return record.destination.and_then(|number| direct.names.uid(number)),
    }
    None
}

/// A native connection's SYN may have passed by the rules of a moment ago, and nothing in the kernel checks
/// it again.
fn let_in_by_old_rules(node: &Node, mesh: &Mesh, record: &Record) -> Option<WorkloadUid> {
    let uid = record.destination.and_then(|number| node.direct.names.uid(number))?;
    let open = record.path != Path::Native || record.probe;
    let client = record.client.filter(|_| !open)?;
    flows::may_stay_native(mesh, &uid, client, record.server).is_err().then_some(uid)
}

/// Why the daemon ended the connection, if it did.
fn was_cut(node: &Node, client: SocketAddr, server: SocketAddr) -> Option<Ending> {
    node.direct.cut.lock().remove(&(client, server)).map(|(_, ending): (Instant, Ending)| ending)
}

/// The policy that has the kernel refuse plaintext, where it is not a PeerAuthentication's demand for TLS.
fn by_policy(node: &Node, mesh: &Mesh, record: &Record) -> Option<Ending> {
    let client = record.client.filter(|_| record.reason == Some(KernelReason::PlaintextRefused))?;
    let uid = node.direct.names.uid(record.destination?)?;
    let denial = flows::may_stay_native(mesh, &uid, client, record.server).err()?;
    let demands_tls = denial.policy().is_some_and(PolicyKey::is_of_peer_authentication);
    (!demands_tls).then(|| report::denied(&denial))
}

fn closed(reason: Option<Reason>) -> Ending {
    match reason {
        None | Some(Reason::Closed) => report::orderly(),
        Some(Reason::Reset) => report::broken(Reason::Reset, "one of the ends reset the connection"),
        Some(reason) => report::broken(reason, reason.name()),
    }
}

fn refused(reason: Option<Reason>) -> Ending {
    let reason = reason.unwrap_or(Reason::KernelMemory);
    let error = match reason {
        Reason::PlaintextRefused => "the workload takes nothing without mutual TLS here",
        Reason::FlowStale => "its policy changed while it was being made",
        Reason::OutboundListenerMissing | Reason::HboneListenerMissing | Reason::PlaintextListenerMissing => {
            "no daemon serves the workload"
        }
        _ => "refused in the kernel",
    };
    report::unmade(reason, error)
}

#[cfg(test)]
mod tests {
    use ambit_daemon_kit::telemetry::connection::Flag;

    use super::*;

    #[test]
    fn endings_say_what_happened() {
        let rows = [
            ("in order", closed(Some(Reason::Closed)), Reason::Closed, Flag::None, false),
            ("by reset", closed(Some(Reason::Reset)), Reason::Reset, Flag::None, true),
            (
                "a policy's no",
                refused(Some(Reason::PlaintextRefused)),
                Reason::PlaintextRefused,
                Flag::Denied,
                true,
            ),
            ("overtaken", refused(Some(Reason::FlowStale)), Reason::FlowStale, Flag::Denied, true),
            (
                "no daemon",
                refused(Some(Reason::OutboundListenerMissing)),
                Reason::OutboundListenerMissing,
                Flag::ConnectFailed,
                true,
            ),
        ];
        for (name, ending, reason, flag, said) in rows {
            assert_eq!((ending.reason, ending.flag, ending.error.is_some()), (reason, flag, said), "{name}");
        }
    }
}
