//! HTTP connections to endpoints, shared by requests: [`Upstreams::lease`].
//!
//! A connection belongs to one endpoint, one protocol and one client, since the destination takes the
//! client's identity into account. HTTP/1 has one request at a time on a connection; HTTP/2 many, spread over
//! several connections, because each has a lock of its own.

mod connections;
mod dial;
mod lease;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ambit_core::mesh::Mesh;
use ambit_core::model::{Identity, WorkloadUid};
use ambit_core::outbound::Plan;
use ambit_core::outlier::ServicePortKey;
use ambit_proxy::dial::Failure;
use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tower::retry::budget::TpsBudget;

use self::connections::Connections;
pub(crate) use self::dial::dial;
pub(crate) use self::lease::{Lease, Unanswered};
use crate::downstream::Downstream;
use crate::endpoint;
use crate::worker::Worker;

/// How often unused connections are looked for.
const SWEEP: Duration = Duration::from_secs(10);
/// How long a budget remembers requests, how many retries it always allows a second, and their share of all
/// requests.
const BUDGET_TIME: Duration = Duration::from_secs(10);
const BUDGET_LEAST: u32 = 3;
const BUDGET_SHARE: f32 = 0.2;

/// All connections of a worker to endpoints. Its locks are this thread's alone.
#[derive(Debug, Default)]
pub(crate) struct Upstreams {
    connections: Mutex<HashMap<Key, Arc<Connections>, RandomState>>,
    loads: Mutex<HashMap<WorkloadUid, Arc<AtomicUsize>, RandomState>>,
    budgets: Mutex<BTreeMap<ServicePortKey, Arc<TpsBudget>>>,
}

/// Which requests may share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    endpoint: Option<WorkloadUid>,
    /// The endpoint's own.
    address: SocketAddr,
    /// The client, where the endpoint learns who it is.
    client: Option<Arc<Identity>>,
    http2: bool,
}

/// Which connection a request needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) http2: bool,
    /// One that no request has been sent on.
    pub(crate) fresh: bool,
}

/// A request that an endpoint has; it counts until this is dropped.
#[derive(Debug)]
struct Load(Arc<AtomicUsize>);

impl Upstreams {
    /// A place for one request on a connection, which is made if there is none.
    pub(crate) async fn lease(
        &self,
        worker: &Worker,
        downstream: &Downstream,
        (mesh, plan): (&Mesh, &Plan),
        want: Want,
    ) -> Result<Lease, Failure> {
        let key = Key::of(plan, downstream, want.http2);
        let load = self.begin(key.endpoint.as_ref());
        let connections = self.connections.lock().entry(key).or_default().clone();
        let dial = || dial(worker, downstream, mesh, plan);
        if want.http2 {
            connections.multiplexed(load, want.fresh, dial).await
        } else {
            connections.exclusive(load, want.fresh, dial).await
        }
    }

    /// How many requests of this worker an endpoint has.
    pub(crate) fn load(&self, endpoint: &WorkloadUid) -> usize {
        self.loads.lock().get(endpoint).map_or(0, |load| load.load(Ordering::Relaxed))
    }

    /// The budget of retries to a port of a service.
    pub(crate) fn budget(&self, port: Option<ServicePortKey>) -> Arc<TpsBudget> {
        let new = || Arc::new(TpsBudget::new(BUDGET_TIME, BUDGET_LEAST, BUDGET_SHARE));
        let Some(port) = port else { return new() };
        self.budgets.lock().entry(port).or_insert_with(new).clone()
    }

    /// How many connections are kept.
    pub(crate) fn count(&self) -> usize {
        self.connections.lock().values().map(|connections| connections.count()).sum()
    }

    fn begin(&self, endpoint: Option<&WorkloadUid>) -> Option<Load> {
        let load = self.loads.lock().entry(endpoint?.clone()).or_default().clone();
        load.fetch_add(1, Ordering::Relaxed);
        Some(Load(load))
    }

    /// Closes what was not used for long, and forgets endpoints that are gone.
    fn sweep(&self) {
        self.connections.lock().retain(|_, connections| {
            connections.close_unused();
            connections.count() > 0 || Arc::strong_count(connections) > 1
        });
        self.loads.lock().retain(|_, load| Arc::strong_count(load) > 1);
    }
}

impl Key {
    fn of(plan: &Plan, downstream: &Downstream, http2: bool) -> Self {
        let client = match plan {
            Plan::Tunnel(_) | Plan::Waypoint(_) => Some(downstream.identity.clone()),
            Plan::Local(_) | Plan::Passthrough(_) => None,
        };
        let endpoint = plan.destination().map(|workload| workload.uid.clone());
        Self { endpoint, address: endpoint::address(plan), client, http2 }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Closes connections that are not used; does not return.
pub(crate) async fn sweep(worker: Arc<Worker>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        worker.upstreams.sweep();
    }
}
