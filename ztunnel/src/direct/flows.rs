//! The open connections that the kernel carries: which of them are no longer allowed ([`recheck`]), and what
//! they carry ([`list`], [`count`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_core::direct::{Refusal, may_stay};
use ambit_core::mesh::Mesh;
use ambit_core::model::WorkloadUid;
use ambit_core::{Denial, Reason, chain};
use ambit_loader::{Flow, Path as KernelPath};
use ambit_proxy::report::{Bytes, Direction, Ending, Path, ending, observed};
use ambit_proxy::views::ConnectionView;
use nix::time::{ClockId, clock_gettime};

use super::context::Context;
use super::observation::Observation;
use super::scope::Scope;
use super::{native, records};
use crate::pods::Pod;

/// Closes the open connections to the destinations in scope that the mesh as it is now denies. Returns the
/// destinations whose connections could not be listed or closed.
pub(super) fn recheck(context: &Context, scope: Scope) -> Scope {
    if scope.is_empty() {
        return scope;
    }
    let Some(mesh) = context.proxy.mesh.mesh() else { return Scope::none() };
    let open = match context.dataplane.flows() {
        Ok(open) => open,
        Err(error) => {
            tracing::error!(error = chain(&error), "failed to list the kernel's flows");
            return scope;
        }
    };
    let mut again = BTreeSet::new();
    for flow in open {
        let Some(uid) = context.names.uid(flow.destination) else { continue };
        // A pod that has left the mesh is as free as before it was enrolled.
        if scope.contains(&uid)
            && context.names.is_enrolled(flow.destination)
            && let Err(refusal) = check(context, &mesh, &uid, &flow)
            && cut(context, &uid, &flow, ending_of(&refusal)).is_err()
        {
            again.insert(uid);
        }
    }
    Scope::Destinations(again)
}

fn open(context: &Context) -> Vec<Flow> {
    context.dataplane.flows().unwrap_or_else(|error| {
        tracing::error!(error = chain(&error), "failed to list the kernel's flows");
        Vec::new()
    })
}

fn check(context: &Context, mesh: &Mesh, destination: &WorkloadUid, flow: &Flow) -> Result<(), Refusal> {
    match flow.path {
        _ if flow.probe => Ok(()),
        KernelPath::Direct => {
            if !context.enabled {
                return Err(Refusal::Disabled(destination.clone()));
            }
            // An earlier daemon let it pass, and its pod has left since.
            let unknown = || Denial::SourceUnknown(WorkloadUid("".into()));
            let source = flow.source.and_then(|number| context.names.workload(number));
            let source = source.ok_or_else(unknown)?;
            if context.links.forbid(&source.uid, destination) {
                return Err(Refusal::Links);
            }
            may_stay(mesh, &source, destination, flow.client, flow.server)
        }
        _ => Ok(native::check(mesh, destination, flow.client, flow.server)?),
    }
}

fn ending_of(refusal: &Refusal) -> Ending {
    let ended = |reason: Reason| ending::broken(reason, refusal.to_string());
    match refusal {
        Refusal::Denied(denial) => ending::denied(denial),
        Refusal::Disabled(_) | Refusal::Waypoint(_) | Refusal::NotCacheable => ended(Reason::DirectDisabled),
        Refusal::TlsDemanded(_) => ended(Reason::TlsDemanded),
        Refusal::Links => ended(Reason::LinkLost),
    }
}

/// Closes the server's socket, which resets the client's; where there is none yet, it cannot be reached, or
/// its reset may not arrive, the client's.
fn cut(context: &Context, destination: &WorkloadUid, flow: &Flow, ending: Ending) -> Result<(), Failed> {
    let source = || context.pods.get(&context.names.uid(flow.source?)?);
    let server = context.pods.get(destination).zip(flow.server_cookie);
    let client = source().zip(flow.client_cookie);
    tracing::info!(
        client = %flow.client,
        server = %flow.server,
        path = flow.path.name(),
        reason = ending.reason.name(),
        "connection no longer allowed"
    );
    let links_lost = ending.reason == Reason::LinkLost;
    let key = (flow.client, flow.server);
    context.cut.lock().insert(key, (Instant::now(), ending));
    let ends = [
        server.map(|(pod, cookie)| (pod, flow.server, flow.client, cookie)),
        client.map(|(pod, cookie)| (pod, flow.client, flow.server, cookie)),
    ];
    let reachable = ends.iter().any(Option::is_some);
    let (mut outcome, mut closed) = (Ok(()), false);
    for (pod, local, remote, cookie) in ends.into_iter().flatten() {
        match pod.with_diag(|diag| diag.destroy(local, remote, cookie)) {
            // It counts when the kernel has removed its entry too: that happens as the socket closes.
            Ok(true) if !is_tracked(context, flow) => closed = true,
            Ok(_) => {}
            Err(error) => {
                let (uid, error) = (&pod.workload.uid, chain(&error));
                tracing::error!(%uid, error, "failed to close a connection");
                outcome = Err(Failed);
            }
        }
        // Where a link is lost, the reset may not arrive.
        if closed && !links_lost {
            break;
        }
    }
    if closed {
        return Ok(());
    }
    context.cut.lock().remove(&key);
    if reachable && is_tracked(context, flow) {
        // Neither end was found, or did not close, and the kernel goes on listing it.
        let (client, server) = (flow.client, flow.server);
        tracing::warn!(%client, %server, "connection still tracked after the cut");
        return Err(Failed);
    }
    // It has just ended by itself, or its pod's namespace is not here yet: then it is rechecked when the pod
    // is added again.
    outcome
}

fn is_tracked(context: &Context, flow: &Flow) -> bool {
    context.dataplane.tracks(flow).unwrap_or_else(|error| {
        tracing::error!(error = chain(&error), "failed to read a flow");
        true
    })
}

/// A connection could not be closed; the error has been logged.
struct Failed;

/// All of them, each with what it has carried until now.
pub(super) fn list(context: &Context) -> Vec<ConnectionView> {
    let mesh = context.proxy.mesh.mesh().unwrap_or_default();
    let now = monotonic();
    let mut views = Vec::new();
    for (flow, carried) in with_bytes(context) {
        let seconds = Duration::from_nanos(now.saturating_sub(flow.opened)).as_secs_f64();
        let link = || context.links.kind(&context.names.uid(flow.destination)?);
        let link = if flow.path == KernelPath::Direct { link() } else { None };
        for info in Observation::from(&flow).reports(&mesh, &context.names) {
            let cookie = match info.direction {
                Direction::Outbound => flow.client_cookie,
                Direction::Inbound | Direction::Through => flow.server_cookie,
            };
            let view = ConnectionView::new(&info, carried.unwrap_or_default(), seconds);
            views.push(view.with_socket(cookie).with_link(link));
        }
    }
    views
}

/// The directions and paths of what the kernel carries.
const CARRIED: [(Direction, Path); 3] = [
    (Direction::Outbound, Path::Direct),
    (Direction::Inbound, Path::Direct),
    (Direction::Inbound, Path::Native),
];

/// Counts in the metrics how many are open, what they have carried until now, and what the kernel recorded.
/// Returns the destinations whose connections must be rechecked.
pub(super) fn count(context: &Context) -> Scope {
    let Some(mesh) = context.proxy.mesh.mesh() else { return Scope::none() };
    let counted = &context.counted;
    let _one_at_a_time = context.draining.lock();
    // First the list, then the records: what leaves the list after this has its end reported after this, and
    // what had its end reported before is in `closed`.
    let closed = counted.begin();
    let flows = with_bytes(context);
    let scope = records::take_all(context, &mesh);
    let mut listed = HashSet::new();
    let mut open = BTreeMap::from(CARRIED.map(|(direction, path)| ((direction as u8, path as u8), 0)));
    for (flow, carried) in flows {
        let Some(cookie) = flow.server_cookie else { continue };
        if closed.contains(&cookie) || counted.is_closed(cookie) {
            continue;
        }
        listed.insert(cookie);
        let carried = carried.map(|total| counted.open(cookie, total));
        for info in Observation::from(&flow).reports(&mesh, &context.names) {
            *open.entry((info.direction as u8, info.path as u8)).or_default() += 1;
            if let Some(carried) = carried {
                counted.counted(cookie, observed::carried(&info, carried).counted);
            }
        }
    }
    counted.keep(&listed);
    for (direction, path) in CARRIED {
        observed::open_now(direction, path, open[&(direction as u8, path as u8)]);
    }
    scope
}

/// All of them, each with what it has carried until now where that is known.
fn with_bytes(context: &Context) -> Vec<(Flow, Option<Bytes>)> {
    let mut sockets: HashMap<WorkloadUid, HashMap<u64, Bytes>> = HashMap::new();
    let mut carried = |flow: &Flow| {
        let uid = context.names.uid(flow.destination)?;
        let of_pod = sockets.entry(uid).or_insert_with_key(|uid| carried(context.pods.get(uid)));
        of_pod.get(&flow.server_cookie?).copied()
    };
    open(context).into_iter().map(|flow| (carried(&flow), flow)).map(|(bytes, flow)| (flow, bytes)).collect()
}

/// What each of a pod's accepted sockets has carried.
fn carried(pod: Option<Arc<Pod>>) -> HashMap<u64, Bytes> {
    let Some(pod) = pod else { return HashMap::new() };
    let sockets = pod.with_diag(ambit_diag::Diag::sockets).unwrap_or_else(|error| {
        tracing::warn!(uid = %pod.workload.uid, error = chain(&error), "failed to list a pod's sockets");
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
