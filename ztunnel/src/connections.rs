//! The open connections of this node: listed for operators, looked at again when the mesh changes, ended by
//! the drain.
//!
//! A connection's whole state is its [`Open`] and the two streams its task holds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ambit_core::mesh::{Mesh, Touched};
use ambit_core::model::PolicyKey;
use ambit_core::policy::{Request, authorize};
use ambit_core::{Denial, inbound};
use ambit_daemon_kit::telemetry::connection::{Bytes, Direction, End, Ending, Facts, OpenConnection, opened};
use ambit_daemon_kit::telemetry::recent::Ended;
use ambit_hbone::relay::Traffic;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::sync::Notify;

use crate::report;

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<Open>>>,
}

/// One open connection.
#[derive(Debug)]
struct Open {
    /// Taken when the end is reported.
    report: Mutex<Option<OpenConnection>>,
    direction: Direction,
    traffic: Arc<Traffic>,
    /// The ALLOW policy that let it in.
    policy: Option<PolicyKey>,
    /// Why it must end before its streams do.
    denial: OnceLock<Denial>,
    ended: Notify,
}

/// A connection's place among the others, held by its task.
pub(crate) struct Registered {
    connections: Arc<Connections>,
    id: u64,
    open: Arc<Open>,
}

impl Connections {
    /// Enters a connection that bytes may flow on, and counts it as opened. `policy`: what let it in.
    pub(crate) fn open(self: &Arc<Self>, facts: Facts, policy: Option<PolicyKey>) -> Registered {
        let open = Arc::new(Open {
            direction: facts.direction,
            report: Mutex::new(Some(opened(facts))),
            traffic: Arc::default(),
            policy,
            denial: OnceLock::new(),
            ended: Notify::new(),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(id, open.clone());
        Registered { connections: self.clone(), id, open }
    }

    /// Ends the inbound connections that the mesh, as it is now, would not let in.
    pub(crate) fn recheck(&self, mesh: &Mesh, touched: Option<&Touched>) {
        let concerned = |facts: &Facts| {
            touched.is_none_or(|touched| {
                !touched.policies.is_empty()
                    || facts.destination.workload.as_ref().is_some_and(|w| touched.workloads.contains(&w.uid))
            })
        };
        for open in self.all() {
            open.recheck(mesh, concerned);
        }
    }

    /// Tells the metrics what has been carried so far.
    pub(crate) fn progress(&self) {
        for open in self.all() {
            if let Some(report) = &*open.report.lock() {
                report.progress(open.bytes());
            }
        }
    }

    /// For `/connections`.
    pub(crate) fn list(&self) -> Vec<View> {
        let mut open: Vec<_> = self.open.read().iter().map(|(id, open)| (*id, open.clone())).collect();
        open.sort_unstable_by_key(|(id, _)| *id);
        open.iter().filter_map(|(id, open)| View::new(*id, open)).collect()
    }

    /// A copy, so that the table is not held while each is looked at.
    fn all(&self) -> Vec<Arc<Open>> {
        self.open.read().values().cloned().collect()
    }
}

impl Open {
    /// What the traffic calls sent is what this node's application sent.
    fn bytes(&self) -> Bytes {
        let (sent, received) = (self.traffic.sent(), self.traffic.received());
        match self.direction {
            Direction::Outbound => Bytes { from_client: sent, from_server: received },
            Direction::Inbound => Bytes { from_client: received, from_server: sent },
        }
    }

    fn recheck(&self, mesh: &Mesh, concerned: impl Fn(&Facts) -> bool) {
        let denial = {
            let report = self.report.lock();
            let Some(facts) = report.as_ref().map(OpenConnection::facts) else { return };
            if self.direction != Direction::Inbound || !concerned(facts) {
                return;
            }
            decide_again(mesh, facts)
        };
        if let Err(denial) = denial
            && self.denial.set(denial).is_ok()
        {
            self.ended.notify_one();
        }
    }
}

/// The decision that let an inbound connection in, taken anew.
fn decide_again(mesh: &Mesh, facts: &Facts) -> Result<(), Denial> {
    let Some(workload) = &facts.destination.workload else { return Ok(()) };
    let source = facts.source.address.ip();
    let decision = match (&facts.source.identity, facts.hbone_address) {
        (Some(identity), Some(authority)) => {
            inbound::authorize_tunnel(mesh, &workload.uid, authority, identity, source)
        }
        (identity, _) => {
            let destination = facts.destination.address;
            authorize(mesh, &workload.uid, &Request { identity: identity.as_ref(), source, destination })
        }
    };
    decision.outcome.map(drop)
}

impl Registered {
    /// Counts the bytes of both directions.
    pub(crate) fn traffic(&self) -> &Arc<Traffic> {
        &self.open.traffic
    }

    /// Looks at the connection again: the mesh may have changed between its decision and its entry here.
    pub(crate) fn recheck(&self, mesh: &Mesh) {
        self.open.recheck(mesh, |_| true);
    }

    /// Resolves when the connection must end, with the reason.
    pub(crate) async fn denied(&self) -> Ending {
        loop {
            if let Some(denial) = self.open.denial.get() {
                return report::denied(denial);
            }
            self.open.ended.notified().await;
        }
    }

    /// Reports the end.
    pub(crate) fn close(self, mut ending: Ending) {
        let report = self.open.report.lock().take();
        if ending.policy.is_none() {
            ending.policy.clone_from(&self.open.policy);
        }
        if let Some(report) = report {
            report.closed(self.open.bytes(), &ending);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections.open.write().remove(&self.id);
    }
}

/// A connection as `/connections` shows it.
#[derive(Debug, Serialize)]
pub(crate) struct View {
    /// Of those that the daemon carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    /// Of those that the kernel carries: the socket's, as `ss -e` shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_cookie: Option<u64>,
    direction: &'static str,
    path: &'static str,
    mutual_tls: bool,
    source: EndView,
    destination: EndView,
    #[serde(skip_serializing_if = "Option::is_none")]
    hbone_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    seconds: f64,
    bytes_from_client: u64,
    bytes_from_server: u64,
}

#[derive(Debug, Serialize)]
struct EndView {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
}

impl View {
    fn new(id: u64, open: &Open) -> Option<Self> {
        let report = open.report.lock();
        let report = report.as_ref()?;
        let policy = open.policy.as_ref().map(ToString::to_string);
        let seconds = report.since().elapsed().as_secs_f64();
        Some(Self { id: Some(id), policy, ..Self::of(report.facts(), open.bytes(), seconds) })
    }

    /// One that the kernel carries.
    pub(crate) fn in_kernel(facts: &Facts, bytes: Bytes, seconds: f64, socket_cookie: Option<u64>) -> Self {
        Self { socket_cookie, ..Self::of(facts, bytes, seconds) }
    }

    fn of(facts: &Facts, bytes: Bytes, seconds: f64) -> Self {
        Self {
            id: None,
            socket_cookie: None,
            direction: facts.direction.as_str(),
            path: facts.path.as_str(),
            mutual_tls: facts.mutual_tls,
            source: EndView::new(&facts.source),
            destination: EndView::new(&facts.destination),
            hbone_address: facts.hbone_address.map(|address| address.to_string()),
            service: facts.service.as_ref().map(|service| service.key.to_string()),
            policy: None,
            seconds,
            bytes_from_client: bytes.from_client,
            bytes_from_server: bytes.from_server,
        }
    }
}

/// A connection that is over, as `/connections/recent` shows it.
#[derive(Debug, Serialize)]
pub(crate) struct EndedView {
    #[serde(flatten)]
    connection: View,
    seconds_ago: f64,
    reason: &'static str,
    /// As `response_flags` in metrics.
    flags: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl EndedView {
    pub(crate) fn new(ended: &Ended) -> Self {
        let policy = ended.ending.policy.as_ref().map(ToString::to_string);
        Self {
            connection: View { policy, ..View::of(&ended.facts, ended.bytes, ended.duration.as_secs_f64()) },
            // A clock that was set back says nothing.
            seconds_ago: ended.at.elapsed().unwrap_or_default().as_secs_f64(),
            reason: ended.ending.reason.name(),
            flags: ended.ending.flag.as_str(),
            error: ended.ending.error.clone(),
        }
    }
}

impl EndView {
    fn new(end: &End) -> Self {
        Self {
            address: end.address.to_string(),
            workload: end.workload.as_ref().map(|workload| workload.uid.to_string()),
            identity: end.identity.as_ref().map(ToString::to_string),
        }
    }
}

#[cfg(test)]
mod tests {
    use ambit_core::Reason;
    use ambit_core::mesh::Change;
    use ambit_core::model::{Action, Workload};
    use ambit_daemon_kit::telemetry::connection::Path;
    use futures::FutureExt as _;

    use super::*;
    use crate::testing::{mesh, policy, put, workload};

    fn facts(direction: Direction, source: &Workload, destination: &Workload) -> Facts {
        let end = |workload: &Workload, port| End {
            address: std::net::SocketAddr::new(workload.addresses[0], port),
            workload: Some(Arc::new(workload.clone())),
            identity: Some(workload.identity()),
        };
        Facts {
            direction,
            path: Path::Tunnel,
            mutual_tls: true,
            source: end(source, 4000),
            destination: end(destination, 15008),
            hbone_address: Some(std::net::SocketAddr::new(destination.addresses[0], 8080)),
            service: None,
        }
    }

    fn ended(registered: &Registered) -> Option<Ending> {
        registered.denied().now_or_never()
    }

    #[test]
    fn a_change_ends_what_it_forbids_and_nothing_else() {
        let (web, legacy) = (workload("web", &["10.0.0.1"]), workload("legacy", &["10.0.0.2"]));
        let cart = workload("cart", &["10.0.1.1"]);
        let connections = Arc::new(Connections::default());
        let open = |direction, source| connections.open(facts(direction, source, &cart), None);
        let from_web = open(Direction::Inbound, &web);
        let from_legacy = open(Direction::Inbound, &legacy);
        let outbound = open(Direction::Outbound, &legacy);

        let mut mesh = mesh([put(web), put(legacy), put(cart.clone())]);
        connections.recheck(&mesh, None);
        assert!(ended(&from_web).is_none() && ended(&from_legacy).is_none(), "no policy");

        let deny = Change::PutPolicy(Arc::new(policy("deny-legacy", Action::Deny, &["legacy"])));
        let touched = mesh.apply([deny]);
        connections.recheck(&mesh, Some(&touched));
        let ending = ended(&from_legacy).expect("denied");
        assert_eq!(ending.reason, Reason::PolicyDenied);
        assert_eq!(ending.policy.map(|policy| policy.to_string()).as_deref(), Some("shop/deny-legacy"));
        assert!(ended(&from_web).is_none());
        assert!(ended(&outbound).is_none(), "enforcement is at the destination");

        let touched = mesh.apply([Change::RemoveWorkload(cart.uid)]);
        connections.recheck(&mesh, Some(&touched));
        assert_eq!(ended(&from_web).expect("the destination left").reason, Reason::WorkloadUnknown);
    }

    #[test]
    fn a_change_elsewhere_is_not_looked_at() {
        let (web, cart) = (workload("web", &["10.0.0.1"]), workload("cart", &["10.0.1.1"]));
        let connections = Arc::new(Connections::default());
        let open = connections.open(facts(Direction::Inbound, &web, &cart), None);
        // A mesh without the destination would end it, if anybody asked.
        let mut other = mesh([]);
        let touched = other.apply([put(workload("other", &["10.0.0.9"]))]);
        connections.recheck(&other, Some(&touched));
        assert!(ended(&open).is_none());
        open.recheck(&other);
        assert!(ended(&open).is_some());
    }

    #[test]
    fn the_list_has_what_is_open() {
        let (web, cart) = (workload("web", &["10.0.0.1"]), workload("cart", &["10.0.1.1"]));
        let connections = Arc::new(Connections::default());
        let open = connections.open(facts(Direction::Inbound, &web, &cart), None);
        assert_eq!(connections.list().len(), 1);
        let view = serde_json::to_value(&connections.list()[0]).unwrap();
        assert_eq!(view["direction"], "inbound");
        assert_eq!(view["source"]["address"], "10.0.0.1:4000");
        assert_eq!(view["destination"]["workload"], cart.uid.to_string());
        open.close(report::orderly());
        assert!(connections.list().is_empty());
    }
}
