//! Connections that are not HTTP, TLS of the application's own among them: bytes to an endpoint and back.
//!
//! Entry points: [`serve_unopened`] where the port is declared so, [`serve`] where it was sniffed.

use std::sync::Arc;
use std::time::Instant;

use ambit_core::Reason;
use ambit_hbone::relay;
use ambit_hbone::server::Responder;
use ambit_proxy::connections::Registered;
use ambit_proxy::relay::ending_of;
use ambit_proxy::report::{ConnectionInfo, Direction, Ending, Party, Path, ending, failed};
use bytes::Bytes;
use http::StatusCode;
use tokio::time::timeout;

use crate::downstream::Downstream;
use crate::endpoint::{Backend, Choosing};
use crate::failure::Failure;
use crate::stream::Downlink;
use crate::upstream::{self, Uplink, dial};

/// Reaches the endpoint, and only then opens the client's tunnel: its `connect()` shows what there is.
pub(crate) async fn serve_unopened(downstream: Arc<Downstream>, mut responder: Responder) {
    let since = Instant::now();
    let mut info = info(&downstream);
    let reached = tokio::select! {
        reached = reach(&downstream, &mut info) => reached,
        () = responder.abandoned() => {
            let ending = ending::unmade(Reason::Reset, "the client gave up before an endpoint answered");
            return failed(&info, since, &ending);
        }
    };
    match reached {
        Ok(uplink) => match responder.accept() {
            Ok(tunnel) => carry(&downstream, info, Downlink::new(Bytes::new(), tunnel), uplink).await,
            Err(error) => failed(&info, since, &ending::unmade(Reason::TunnelFailed, error.chain())),
        },
        Err(ending) => {
            responder.refuse(StatusCode::SERVICE_UNAVAILABLE);
            failed(&info, since, &ending);
        }
    }
}

/// Carries a connection of which the first bytes are known.
pub(crate) async fn serve(downstream: Arc<Downstream>, link: Downlink) {
    let since = Instant::now();
    let mut info = info(&downstream);
    match reach(&downstream, &mut info).await {
        Ok(uplink) => carry(&downstream, info, link, uplink).await,
        // The link resets the client when it is dropped.
        Err(ending) => failed(&info, since, &ending),
    }
}

async fn reach(downstream: &Downstream, info: &mut ConnectionInfo) -> Result<Uplink, Ending> {
    let worker = &downstream.worker;
    let not_synchronized =
        || ending::unmade(Reason::NotSynchronized, "no configuration from the controller yet");
    let mesh = worker.waypoint.proxy.mesh.mesh().ok_or_else(not_synchronized)?;
    let backend = Backend::dialled(downstream);
    let mut choosing = Choosing::new(worker, &mesh, &backend);
    loop {
        let plan = choosing.next(&[]).map_err(|failure| ending_from(&failure))?;
        info.destination.address = upstream::address(&plan);
        info.destination.workload = plan.destination().cloned();
        let made = timeout(choosing.limit(), dial(worker, downstream, &mesh, &plan)).await;
        let made = choosing.outcome(&plan, made).map_err(|failure| ending_from(&failure))?;
        if let Some(uplink) = made {
            return Ok(uplink);
        }
    }
}

fn ending_from(failure: &Failure) -> Ending {
    match failure {
        Failure::NoEndpoint(denial) => ending::denied(denial),
        failure => ending::unmade(Reason::ConnectFailed, failure.to_string()),
    }
}

async fn carry(downstream: &Downstream, info: ConnectionInfo, link: Downlink, uplink: Uplink) {
    let proxy = &downstream.worker.waypoint.proxy;
    let registered: Registered = proxy.connections.open(info, None);
    let ending = {
        let traffic = registered.traffic();
        // The endpoint's side is first, as that of the application is in ztunnel.
        let carried = async {
            match uplink {
                Uplink::Tunnel(tunnel) => relay::streams(tunnel, link, traffic).await,
                Uplink::Plain(stream) => relay::socket(stream, link, traffic).await,
            }
        };
        tokio::select! {
            outcome = carried => ending_of(&outcome),
            () = proxy.drain.cut() => ending::broken(Reason::Drained, "the deadline of the drain has passed"),
        }
    };
    registered.close(ending);
}

fn info(downstream: &Downstream) -> ConnectionInfo {
    ConnectionInfo {
        direction: Direction::Through,
        path: Path::Waypoint,
        mutual_tls: true,
        source: Party {
            address: downstream.client,
            workload: downstream.source.clone(),
            identity: Some((*downstream.identity).clone()),
        },
        destination: Party::at(downstream.dialled),
        hbone_address: Some(downstream.dialled),
        client: None,
        service: downstream.service().cloned(),
    }
}
