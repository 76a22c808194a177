//! The open connections that the kernel carries: which of them are no longer allowed ([`recheck`]), and what
//! they carry ([`list`], [`count`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_core::direct::Refusal;
use ambit_core::mesh::Mesh;
use ambit_core::model::WorkloadUid;
use ambit_core::policy::{Request, authorize};
use ambit_core::{Denial, Reason};
use ambit_daemon_kit::telemetry::connection::{self, Bytes, Direction, Ending, observed};
use ambit_loader::{Flow, Path};
use nix::time::{ClockId, clock_gettime};

use super::facts::Seen;
use super::{Whom, records};
use crate::connections::View;
use crate::daemon::Node;
use crate::pods::Pod;
use crate::report;

/// Ends those of the destinations' open connections that the mesh, as it is now, does not allow. Returns
/// whose could not be looked at, or ended.
pub(super) fn recheck(node: &Node, whom: Whom) -> Whom {
    if whom.is_nobody() {
        return whom;
    }
    let Some(mesh) = node.state.mesh() else { return Whom::nobody() };
    let open = match node.kernel.dataplane().flows() {
        Ok(open) => open,
        Err(error) => {
            tracing::error!(error = report::chain(&error), "reading the kernel's open connections");
            return whom;
        }
    };
    let mut again = BTreeSet::new();
    for flow in open {
        let Some(uid) = node.direct.names.uid(flow.destination) else { continue };
        // One that has left is on its own, as it was before it came.
        if whom.contains(&uid)
            && node.direct.names.is_enrolled(flow.destination)
            && let Err(refusal) = may_stay(node, &mesh, &uid, &flow)
            && cut(node, &uid, &flow, ending(&refusal)).is_err()
        {
            again.insert(uid);
        }
    }
    Whom::These(again)
}

fn open(node: &Node) -> Vec<Flow> {
    node.kernel.dataplane().flows().unwrap_or_else(|error| {
        tracing::error!(error = report::chain(&error), "reading the kernel's open connections");
        Vec::new()
    })
}

fn may_stay(node: &Node, mesh: &Mesh, destination: &WorkloadUid, flow: &Flow) -> Result<(), Refusal> {
    match flow.path {
        _ if flow.probe => Ok(()),
        Path::Direct => {
            if !node.direct.settings.enabled {
                return Err(Refusal::Disabled(destination.clone()));
            }
            // Nobody knows whose it is: an earlier daemon let it pass, and its pod has left since.
            let unknown = || Denial::SourceUnknown(WorkloadUid("".into()));
            let source = flow.source.and_then(|number| node.direct.names.workload(number));
            ambit_core::direct::may_stay(
                mesh,
                &*source.ok_or_else(unknown)?,
                destination,
                flow.client,
                flow.server,
            )
        }
        _ => Ok(may_stay_native(mesh, destination, flow.client, flow.server)?),
    }
}

/// Whether a connection without identity may reach a workload.
pub(super) fn may_stay_native(
    mesh: &Mesh,
    destination: &WorkloadUid,
    client: SocketAddr,
    server: SocketAddr,
) -> Result<(), Denial> {
    let peer = Request { identity: None, source: client.ip(), destination: server };
    authorize(mesh, destination, &peer).outcome.map(drop)
}

fn ending(refusal: &Refusal) -> Ending {
    let ended = |reason: Reason| report::broken(reason, refusal.to_string());
    match refusal {
        Refusal::Denied(denial) => report::denied(denial),
        Refusal::Disabled(_) | Refusal::NotCacheable => ended(Reason::DirectDisabled),
        Refusal::TlsDemanded(_) => ended(Reason::TlsDemanded),
    }
}

/// Closes the server's end, which resets the client's; where there is none yet, or it cannot be got at, the
/// client's.
fn cut(node: &Node, destination: &WorkloadUid, flow: &Flow, ending: Ending) -> Result<(), Failed> {
    let source = || node.pods.get(&node.direct.names.uid(flow.source?)?);
    let server = node.pods.get(destination).zip(flow.server_cookie);
    let client = source().zip(flow.client_cookie);
    tracing::info!(
        client = %flow.client,
        server = %flow.server,
        path = flow.path.name(),
        reason = ending.reason.name(),
        "a connection is no longer allowed"
    );
    let key = (flow.client, flow.server);
    node.direct.cut.lock().insert(key, (Instant::now(), ending));
    let ends = [
        server.map(|(pod, cookie)| (pod, flow.server, flow.client, cookie)),
        client.map(|(pod, cookie)| (pod, flow.client, flow.server, cookie)),
    ];
    let mut outcome = Ok(());
    for (pod, local, remote, cookie) in ends.into_iter().flatten() {
        match pod.with_diag(|diag| diag.destroy(local, remote, cookie)) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(uid = %pod.uid, error = report::chain(&error), "closing a connection");
                outcome = Err(Failed);
            }
        }
    }
    // It has just ended by itself, or its pod's namespace is not here yet: then it is looked at when that
    // comes.
    node.direct.cut.lock().remove(&key);
    outcome
}

/// A connection could not be closed, which has been logged.
struct Failed;

/// All of them, each with what it has carried until now.
pub(super) fn list(node: &Node) -> Vec<View> {
    let mesh = node.state.mesh().unwrap_or_default();
    let now = monotonic();
    let mut views = Vec::new();
    for (flow, carried) in with_bytes(node) {
        let seconds = Duration::from_nanos(now.saturating_sub(flow.opened)).as_secs_f64();
        for facts in Seen::from(&flow).reports(&mesh, &node.direct.names) {
            let cookie = match facts.direction {
                Direction::Outbound => flow.client_cookie,
                Direction::Inbound => flow.server_cookie,
            };
            views.push(View::in_kernel(&facts, carried.unwrap_or_default(), seconds, cookie));
        }
    }
    views
}

/// The directions and paths of what the kernel carries.
const CARRIED: [(Direction, connection::Path); 3] = [
    (Direction::Outbound, connection::Path::Direct),
    (Direction::Inbound, connection::Path::Direct),
    (Direction::Inbound, connection::Path::Native),
];

/// Tells the metrics how many are open and what they have carried until now, and what the kernel recorded.
/// Returns whose connections must be looked at again.
pub(super) fn count(node: &Node) -> Whom {
    let Some(mesh) = node.state.mesh() else { return Whom::nobody() };
    let counted = &node.direct.counted;
    let _one_at_a_time = node.direct.draining.lock();
    // First the list, then the records: whoever leaves it after this has its end reported after this, and
    // whose end was reported before is in `closed`.
    let closed = counted.begin();
    let flows = with_bytes(node);
    let whom = records::take_all(node, &mesh);
    let mut listed = HashSet::new();
    let mut open = BTreeMap::from(CARRIED.map(|(direction, path)| ((direction as u8, path as u8), 0)));
    for (flow, carried) in flows {
        let Some(cookie) = flow.server_cookie else { continue };
        if closed.contains(&cookie) || counted.is_closed(cookie) {
            continue;
        }
        listed.insert(cookie);
        let carried = carried.map(|total| counted.open(cookie, total));
        for facts in Seen::from(&flow).reports(&mesh, &node.direct.names) {
            *open.entry((facts.direction as u8, facts.path as u8)).or_default() += 1;
            if let Some(carried) = carried {
                counted.counted(cookie, observed::carried(&facts, carried).counted);
            }
        }
    }
    counted.keep(&listed);
    for (direction, path) in CARRIED {
        observed::open_now(direction, path, open[&(direction as u8, path as u8)]);
    }
    whom
}

/// All of them, each with what it has carried until now where that is known.
fn with_bytes(node: &Node) -> Vec<(Flow, Option<Bytes>)> {
    let mut sockets: HashMap<WorkloadUid, HashMap<u64, Bytes>> = HashMap::new();
    let mut carried = |flow: &Flow| {
        let uid = node.direct.names.uid(flow.destination)?;
        let of_pod = sockets.entry(uid).or_insert_with_key(|uid| carried(node.pods.get(uid)));
        of_pod.get(&flow.server_cookie?).copied()
    };
    open(node).into_iter().map(|flow| (carried(&flow), flow)).map(|(bytes, flow)| (flow, bytes)).collect()
}

/// What each of a pod's accepted sockets has carried.
fn carried(pod: Option<Arc<Pod>>) -> HashMap<u64, Bytes> {
    let Some(pod) = pod else { return HashMap::new() };
    let sockets = pod.with_diag(ambit_diag::Diag::sockets).unwrap_or_else(|error| {
        tracing::warn!(uid = %pod.uid, error = report::chain(&error), "reading a pod's sockets");
        Vec::new()
    });
    let bytes = |socket: ambit_diag::TcpSocket| {
        (socket.cookie, Bytes { from_client: socket.received(), from_server: socket.sent_by_server() })
    };
    sockets.into_iter().map(bytes).collect()
}

/// The clock of the kernel's records.
pub(super) fn monotonic() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .ok()
        .and_then(|now| u64::try_from(Duration::from(now).as_nanos()).ok())
        .unwrap_or_default()
}
