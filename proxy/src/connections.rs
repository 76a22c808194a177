//! The registry of open connections: listed for operators, rechecked when the mesh changes, ended by the
//! drain.
//!
//! A connection's whole state is its [`Open`] and the two streams its task holds.
//!
//! Entry points: [`Connections::open`], then [`Registered::close`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ambit_core::mesh::{Mesh, Touched};
use ambit_core::model::PolicyKey;
use ambit_core::policy::{Request, authorize};
use ambit_core::{Denial, inbound};
use ambit_hbone::relay::Traffic;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::report::{Bytes, ConnectionInfo, Direction, Ending, OpenConnection, ending, opened};
use crate::views::ConnectionView;

/// All open connections of this proxy.
#[derive(Debug, Default)]
pub struct Connections {
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
    /// The ALLOW policy that permitted it.
    policy: Option<PolicyKey>,
    /// Why it must end, if a change of the mesh denies it.
    denial: OnceLock<Denial>,
    ended: Notify,
}

/// A connection's place in the registry, held by its task.
#[derive(Debug)]
pub struct Registered {
    connections: Arc<Connections>,
    id: u64,
    open: Arc<Open>,
}

impl Connections {
    /// Registers a connection that bytes may flow on, and counts it as opened. `policy`: what permitted it.
    pub fn open(self: &Arc<Self>, connection: ConnectionInfo, policy: Option<PolicyKey>) -> Registered {
        let open = Arc::new(Open {
            direction: connection.direction,
            report: Mutex::new(Some(opened(connection))),
            traffic: Arc::default(),
            policy,
            denial: OnceLock::new(),
            ended: Notify::new(),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(id, open.clone());
        Registered { connections: self.clone(), id, open }
    }

    /// Ends the inbound connections that the mesh as it is now denies.
    pub fn recheck(&self, mesh: &Mesh, touched: Option<&Touched>) {
        let concerned = |connection: &ConnectionInfo| {
            touched.is_none_or(|touched| {
                !touched.policies.is_empty()
                    || connection
                        .destination
                        .workload
                        .as_ref()
                        .is_some_and(|w| touched.workloads.contains(&w.uid))
            })
        };
        for open in self.all() {
            open.recheck(mesh, concerned);
        }
    }

    /// Counts what has been carried so far in the metrics.
    pub fn progress(&self) {
        for open in self.all() {
            if let Some(report) = &*open.report.lock() {
                report.progress(open.bytes());
            }
        }
    }

    /// For `/connections`.
    pub fn list(&self) -> Vec<ConnectionView> {
        let mut open: Vec<_> = self.open.read().iter().map(|(id, open)| (*id, open.clone())).collect();
        open.sort_unstable_by_key(|(id, _)| *id);
        open.iter().filter_map(|(id, open)| open.view(*id)).collect()
    }

    /// A copy, so that the lock is not held while each is looked at.
    fn all(&self) -> Vec<Arc<Open>> {
        self.open.read().values().cloned().collect()
    }
}

impl Open {
    /// None if its end is being reported.
    fn view(&self, id: u64) -> Option<ConnectionView> {
        let report = self.report.lock();
        let report = report.as_ref()?;
        let seconds = report.since().elapsed().as_secs_f64();
        let view = ConnectionView::new(report.connection(), self.bytes(), seconds);
        Some(view.registered(id, self.policy.as_ref()))
    }

    /// `Traffic` counts as sent what this node's application sent.
    fn bytes(&self) -> Bytes {
        let (sent, received) = (self.traffic.sent(), self.traffic.received());
        match self.direction {
            Direction::Outbound => Bytes { from_client: sent, from_server: received },
            Direction::Inbound | Direction::Through => Bytes { from_client: received, from_server: sent },
        }
    }

    fn recheck(&self, mesh: &Mesh, concerned: impl Fn(&ConnectionInfo) -> bool) {
        let denial = {
            let report = self.report.lock();
            let Some(connection) = report.as_ref().map(OpenConnection::connection) else { return };
            if self.direction != Direction::Inbound || !concerned(connection) {
                return;
            }
            authorize_again(mesh, connection)
        };
        if let Err(denial) = denial
            && self.denial.set(denial).is_ok()
        {
            self.ended.notify_one();
        }
    }
}

/// Takes the decision about an inbound connection again.
fn authorize_again(mesh: &Mesh, connection: &ConnectionInfo) -> Result<(), Denial> {
    let Some(workload) = &connection.destination.workload else { return Ok(()) };
    let source = connection.source.address.ip();
    let decision = match (&connection.source.identity, connection.hbone_address) {
        (Some(identity), Some(authority)) => {
            let client = connection.client.as_ref();
            inbound::authorize_tunnel_for(mesh, &workload.uid, authority, identity, source, client)
        }
        (identity, _) => {
            let destination = connection.destination.address;
            authorize(mesh, &workload.uid, &Request { identity: identity.as_ref(), source, destination })
        }
    };
    decision.outcome.map(drop)
}

impl Registered {
    /// Counts the bytes of both directions.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.open.traffic
    }

    /// Rechecks the connection: the mesh may have changed between its decision and its registration.
    pub fn recheck(&self, mesh: &Mesh) {
        self.open.recheck(mesh, |_| true);
    }

    /// Resolves when the connection must end, with the reason.
    pub async fn denied(&self) -> Ending {
        loop {
            if let Some(denial) = self.open.denial.get() {
                return ending::denied(denial);
            }
            self.open.ended.notified().await;
        }
    }

    /// Reports the end.
    pub fn close(self, mut ending: Ending) {
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

#[cfg(test)]
mod tests;
