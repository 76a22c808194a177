//! What the kernel recorded, reported as on the other paths: [`drain`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ambit_core::mesh::Mesh;
use ambit_core::model::{PolicyKey, WorkloadUid};
use ambit_core::{Reason, chain};
use ambit_loader::{KernelReason, Path, Record, RecordKind};
use ambit_proxy::report::{Bytes, Ending, ending, observed};

use super::context::Context;
use super::observation::Observation;
use super::scope::Scope;
use super::{native, untracked};
use crate::reason::from_kernel;

/// Reports what the kernel recorded since the last time. Returns the destinations whose connections must be
/// rechecked.
///
/// Before the mesh is known nothing can be named: records wait in the kernel, which counts those it has no
/// room for.
pub(super) fn drain(context: &Context) -> Scope {
    let Some(mesh) = context.proxy.mesh.mesh() else { return Scope::none() };
    let _one_at_a_time = context.draining.lock();
    context.counted.begin();
    take_all(context, &mesh)
}

/// [`drain`], for a caller that holds the lock.
pub(super) fn take_all(context: &Context, mesh: &Mesh) -> Scope {
    let mut again = BTreeSet::new();
    let mut each = |record: Record| again.extend(take(context, mesh, &record));
    if let Err(error) = context.dataplane.records(&mut each) {
        tracing::error!(error = chain(&error), "failed to read the kernel's records");
    }
    Scope::Destinations(again)
}

/// Returns the destination if its connections must be rechecked.
fn take(context: &Context, mesh: &Mesh, record: &Record) -> Option<WorkloadUid> {
    let reports = Observation::from(record).reports(mesh, &context.names);
    match record.kind {
        RecordKind::Opened => {
            reports.iter().for_each(observed::opened);
            return let_in_by_old_rules(context, mesh, record);
        }
        RecordKind::Closed => {
            let ending = record.client.and_then(|client| was_cut(context, client, record.server));
            let ending = ending.unwrap_or_else(|| closed(record.reason.map(from_kernel)));
            let total = Bytes { from_client: record.from_client, from_server: record.from_server };
            let carried = context.counted.closed(record.server_cookie, total);
            let duration = Duration::from_nanos(record.at.saturating_sub(record.opened));
            for info in &reports {
                observed::closed(info, carried, duration, &ending);
            }
        }
        RecordKind::Refused => {
            let ending =
                by_policy(context, mesh, record).unwrap_or_else(|| refused(record.reason.map(from_kernel)));
            for info in &reports {
                observed::refused(info, &ending);
            }
        }
        RecordKind::Untracked => untracked::close(context, record),
        RecordKind::Stale => return record.destination.and_then(|number| context.names.uid(number)),
    }
    None
}

/// A native connection's SYN may have passed by earlier rules, and nothing in the kernel checks it again.
fn let_in_by_old_rules(context: &Context, mesh: &Mesh, record: &Record) -> Option<WorkloadUid> {
    let uid = record.destination.and_then(|number| context.names.uid(number))?;
    let open = record.path != Path::Native || record.probe;
    let client = record.client.filter(|_| !open)?;
    native::check(mesh, &uid, client, record.server).is_err().then_some(uid)
}

/// Why the daemon ended the connection, if it did.
fn was_cut(context: &Context, client: SocketAddr, server: SocketAddr) -> Option<Ending> {
    context.cut.lock().remove(&(client, server)).map(|(_, ending): (Instant, Ending)| ending)
}

/// The denial of the policy that has the kernel refuse plaintext, unless it is a PeerAuthentication that
/// demands TLS.
fn by_policy(context: &Context, mesh: &Mesh, record: &Record) -> Option<Ending> {
    let client = record.client.filter(|_| record.reason == Some(KernelReason::PlaintextRefused))?;
    let uid = context.names.uid(record.destination?)?;
    let denial = native::check(mesh, &uid, client, record.server).err()?;
    let demands_tls = denial.policy().is_some_and(PolicyKey::is_of_peer_authentication);
    (!demands_tls).then(|| ending::denied(&denial))
}

fn closed(reason: Option<Reason>) -> Ending {
    match reason {
        None | Some(Reason::Closed) => ending::orderly(),
        Some(Reason::Reset) => ending::broken(Reason::Reset, "the client or the server reset the connection"),
        Some(reason) => ending::broken(reason, reason.name()),
    }
}

fn refused(reason: Option<Reason>) -> Ending {
    let reason = reason.unwrap_or(Reason::KernelMemory);
    let error = match reason {
        Reason::PlaintextRefused => "the workload accepts only mutual TLS here",
        Reason::FlowStale => "its policy changed while it was being made",
        Reason::OutboundListenerMissing | Reason::HboneListenerMissing | Reason::PlaintextListenerMissing => {
            "no daemon serves the workload"
        }
        _ => "refused in the kernel",
    };
    ending::unmade(reason, error)
}

#[cfg(test)]
mod tests;
