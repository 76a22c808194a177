//! Connections that neither the daemon carries nor the kernel tracks: those that were open when their pod was
//! enrolled ([`enrolled`]), and those that passed while something was missing in the kernel. [`recheck`]
//! closes what the mesh does not allow.

use std::collections::{BTreeSet, HashSet};

use ambit_core::chain;
use ambit_core::mesh::Mesh;
use ambit_core::model::WorkloadUid;
use ambit_core::unlisted::{Unlisted, may_stay};
use ambit_daemon_kit::telemetry::instruments::Counters;
use ambit_diag::{Diag, State, TcpSocket};
use ambit_loader::HBONE_PORT;

use super::context::Context;
use super::scope::Scope;
use crate::pods::Pod;

/// Connections that were closed.
pub(crate) static CLOSED: Counters<1> = Counters::new(
    "ambit_unlisted_connections_closed_total",
    "Connections closed that neither the daemon carried nor the kernel tracked, by direction.",
    ["direction"],
);

/// Remembers what a pod that was not enrolled before has open: what it connected to stays.
pub(super) fn enrolled(context: &Context, pod: &Pod, fresh: bool) {
    match list(context, pod) {
        Ok(open) => pod.set_older(open.into_iter().map(|(socket, _)| socket.cookie).collect()),
        Err(error) => {
            let (uid, error) = (&pod.workload.uid, chain(&error));
            tracing::error!(%uid, fresh, error, "failed to list the connections from before the enrolment");
        }
    }
}

/// Closes what the mesh as it is now does not allow; where something was put right a moment ago (`suspect`),
/// what passed capture, too. Returns the pods whose connections could not be listed or
/// closed.
pub(super) fn recheck(context: &Context, scope: &Scope, suspect: bool) -> Scope {
    if scope.is_empty() {
        return Scope::none();
    }
    let Some(mesh) = context.proxy.mesh.mesh() else { return Scope::none() };
    let mut again = BTreeSet::new();
    let mut open = Vec::new();
    for pod in context.pods.all().into_iter().filter(|pod| scope.contains(&pod.workload.uid)) {
        match list(context, &pod) {
            Ok(sockets) => open.push((pod, sockets)),
            Err(error) => failed(&mut again, &pod, &error),
        }
    }
    // After the sockets: what was tracked when they were listed is so still, or closed.
    let tracked: HashSet<u64> = match context.dataplane.flows() {
        Ok(flows) => flows.iter().filter_map(|flow| flow.server_cookie).collect(),
        Err(error) => {
            tracing::error!(error = chain(&error), "failed to list the kernel's flows");
            return scope.clone();
        }
    };
    for (pod, sockets) in open {
        for (socket, inbound) in sockets.into_iter().filter(|(socket, _)| !tracked.contains(&socket.cookie)) {
            if let Err(error) = judge(&mesh, &pod, &socket, inbound, suspect) {
                failed(&mut again, &pod, &error);
            }
        }
    }
    Scope::Destinations(again)
}

fn failed(again: &mut BTreeSet<WorkloadUid>, pod: &Pod, error: &ambit_diag::Error) {
    let uid = &pod.workload.uid;
    tracing::error!(%uid, error = chain(error), "failed to recheck a pod's connections");
    again.insert(uid.clone());
}

fn judge(
    mesh: &Mesh,
    pod: &Pod,
    socket: &TcpSocket,
    inbound: bool,
    suspect: bool,
) -> Result<(), ambit_diag::Error> {
    let (uid, local, remote) = (&pod.workload.uid, socket.local, socket.remote);
    let suspect = suspect && !pod.is_older(socket.cookie);
    let connection = Unlisted { local, remote, inbound, suspect };
    let Err(ended) = may_stay(mesh, uid, &connection) else { return Ok(()) };
    if pod.with_diag(|diag| diag.destroy(local, remote, socket.cookie))? {
        let direction = if inbound { "inbound" } else { "outbound" };
        tracing::info!(%uid, %local, %remote, direction, reason = %ended, "connection no longer allowed");
        CLOSED.count([direction]);
    }
    Ok(())
}

/// A pod's connections without state of the mesh, each with whether it was accepted.
fn list(context: &Context, pod: &Pod) -> Result<Vec<(TcpSocket, bool)>, ambit_diag::Error> {
    let maps = context.dataplane.socket_maps();
    let (sockets, listening) = pod.with_diag(|diag: &mut Diag| {
        // The list of ports last: a listener that opens meanwhile is no reason to take a connection for one
        // that the pod made.
        Ok((diag.sockets_stored_in(&maps)?, diag.listening()?))
    })?;
    let unknown = |socket: &TcpSocket| {
        let (local, remote) = (socket.local.ip(), socket.remote.ip());
        let within = remote.is_loopback() || local == remote;
        // Only the daemon gets these; those of an earlier build have their state in other maps.
        let tunnel = socket.local.port() == HBONE_PORT;
        !socket.stored && !within && !tunnel && socket.state != State::SynReceived
    };
    let direction = |socket: TcpSocket| {
        let inbound = socket.accepted.unwrap_or_else(|| listening.contains(&socket.local.port()));
        (socket, inbound && socket.state != State::SynSent)
    };
    Ok(sockets.into_iter().filter(unknown).map(direction).collect())
}
