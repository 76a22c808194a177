//! HTTP connections to endpoints, shared by requests: [`reach`] takes a place on one.
//!
//! A connection belongs to one endpoint, one protocol and one client, since the destination takes the
//! client's identity into account. HTTP/1 has one request at a time on a connection; HTTP/2 many, spread over
//! several connections, because each has a lock of its own.

mod connections;
mod dial;
mod idle;
mod lease;
mod load;
mod uplink;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ambit_core::model::{Identity, WorkloadUid};
use ambit_core::outbound::Plan;
use ambit_core::outlier::ServicePortKey;
use ambit_proxy::dial::Failure;
use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tower::retry::budget::TpsBudget;

use self::connections::Connections;
pub(crate) use self::dial::{dial, reach};
pub(crate) use self::lease::{Lease, Unanswered};
use self::load::Load;
pub(crate) use self::uplink::Uplink;

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

impl Upstreams {
    /// A place for one request of a client on a connection, which is made with `dial` if there is none.
    async fn lease<F: Future<Output = Result<Uplink, Failure>>>(
        &self,
        client: &Arc<Identity>,
        plan: &Plan,
        want: Want,
        dial: impl FnOnce() -> F,
    ) -> Result<Lease, Failure> {
        let key = Key::of(plan, client, want.http2);
        let load = self.begin(key.endpoint.as_ref());
        let connections = self.connections.lock().entry(key).or_default().clone();
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
        Some(Load::begin(load))
    }

    /// Closes what was not used for long, and forgets endpoints that are gone.
    pub(crate) fn sweep(&self) {
        self.connections.lock().retain(|_, connections| {
            connections.close_unused();
            connections.count() > 0 || connections.is_lent() || Arc::strong_count(connections) > 1
        });
        self.loads.lock().retain(|_, load| Arc::strong_count(load) > 1);
    }
}

impl Key {
    fn of(plan: &Plan, client: &Arc<Identity>, http2: bool) -> Self {
        let client = match plan {
            Plan::Tunnel(_) | Plan::Waypoint(_) => Some(client.clone()),
            Plan::Local(_) | Plan::Passthrough(_) => None,
        };
        let endpoint = plan.destination().map(|workload| workload.uid.clone());
        Self { endpoint, address: address(plan), client, http2 }
    }
}

/// Where the bytes go.
pub(crate) fn address(plan: &Plan) -> SocketAddr {
    match plan {
        Plan::Tunnel(tunnel) => tunnel.authority,
        Plan::Waypoint(to) => to.tunnel.peer,
        Plan::Local(local) => local.address,
        Plan::Passthrough(plaintext) => plaintext.address,
    }
}
