//! The way to an endpoint, as a plan says: [`reach`] for a place on an HTTP connection, [`dial`] for a
//! stream.

use ambit_core::mesh::Mesh;
use ambit_core::outbound::{Plaintext, Plan, WaypointTunnel, resolved};
use ambit_proxy::dial::{self, Failure};

use super::{Lease, Uplink, Want};
use crate::downstream::Downstream;
use crate::worker::Worker;

/// A place for one request on a connection, which is made if there is none.
pub(crate) async fn reach(
    worker: &Worker,
    downstream: &Downstream,
    (mesh, plan): (&Mesh, &Plan),
    want: Want,
) -> Result<Lease, Failure> {
    let dial = || dial(worker, downstream, mesh, plan);
    worker.upstreams.lease(&downstream.identity, plan, want, dial).await
}

/// Makes a stream to the endpoint of a plan, for the client.
pub(crate) async fn dial(
    worker: &Worker,
    downstream: &Downstream,
    mesh: &Mesh,
    plan: &Plan,
) -> Result<Uplink, Failure> {
    match plan {
        Plan::Passthrough(named @ Plaintext { hostname: Some(name), .. }) => {
            by_name(worker, downstream, mesh, (named, name)).await
        }
        plan => by_address(worker, downstream, plan).await,
    }
}

async fn by_address(worker: &Worker, downstream: &Downstream, plan: &Plan) -> Result<Uplink, Failure> {
    let served = &*worker.waypoint.served;
    match plan {
        Plan::Tunnel(tunnel) | Plan::Waypoint(WaypointTunnel { tunnel, .. }) => {
            let client = downstream.verified();
            dial::tunnel_for(&worker.pool, &served.workload, tunnel, client).await.map(Uplink::Tunnel)
        }
        Plan::Local(local) => dial::itself(served, local, downstream.client).await.map(Uplink::Plain),
        Plan::Passthrough(plaintext) => {
            let limit = worker.waypoint.proxy.timeouts.endpoint();
            dial::plain(served, plaintext.address, limit).await.map(Uplink::Plain)
        }
    }
}

/// Tries the addresses that an endpoint's name has now, one after the other.
async fn by_name(
    worker: &Worker,
    downstream: &Downstream,
    mesh: &Mesh,
    (named, name): (&Plaintext, &str),
) -> Result<Uplink, Failure> {
    let mut last = None;
    for address in dial::resolve(name, named.address).await? {
        let Some(plan) = resolved(mesh, named, address, rand::random()) else { continue };
        match by_address(worker, downstream, &plan).await {
            Err(failure @ Failure { elsewhere: true, .. }) => last = Some(failure),
            done => return done,
        }
    }
    Err(last.unwrap_or_else(|| dial::unresolved(name, "no address that a peer can have")))
}
