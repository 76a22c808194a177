//! Connections that are not HTTP, TLS of the application's own among them: bytes to an endpoint and back.
//!
//! Entry points: [`serve_unopened`] where the port is declared so or has a TCPRoute, [`serve`] where the
//! first bytes are known. A route that leads to nothing refuses the connection.

use std::sync::Arc;
use std::time::Instant;

use ambit_core::Reason;
use ambit_core::mesh::Mesh;
use ambit_core::route::{PortRoutes, Target};
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
        reached = reach(&downstream, None, &mut info) => reached,
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

/// Carries a connection of which the first bytes are known, and the server name where it is TLS and a route
/// asks for it.
pub(crate) async fn serve(downstream: Arc<Downstream>, server_name: Option<&str>, link: Downlink) {
    let since = Instant::now();
    let mut info = info(&downstream);
    match reach(&downstream, server_name, &mut info).await {
        Ok(uplink) => carry(&downstream, info, link, uplink).await,
        // The link resets the client when it is dropped.
        Err(ending) => failed(&info, since, &ending),
    }
}

/// Reports a connection that is not carried.
pub(crate) fn refuse(downstream: &Downstream, why: &str) {
    failed(&info(downstream), Instant::now(), &ending::unmade(Reason::RouteMissing, why));
}

/// Where a connection goes: to the backend of its route, or to what was dialled where the port has none.
fn backend(downstream: &Downstream, mesh: &Mesh, server_name: Option<&str>) -> Result<Backend, Failure> {
    let Some(PortRoutes::Connections(table)) = downstream.routes(mesh) else {
        return Ok(Backend::dialled(downstream));
    };
    let route = table.find(server_name).ok_or(Failure::NoRoute)?;
    let rule = route.rules.first().ok_or(Failure::NoBackend)?;
    match &rule.backends.pick(rand::random()).ok_or(Failure::NoBackend)?.target {
        Target::Invalid { reason } => Err(Failure::InvalidBackend(reason.clone())),
        Target::Service { service, port } => Backend::service(mesh, downstream, service, *port),
    }
}

async fn reach(
    downstream: &Downstream,
    server_name: Option<&str>,
    info: &mut ConnectionInfo,
) -> Result<Uplink, Ending> {
    let worker = &downstream.worker;
    let not_synchronized =
        || ending::unmade(Reason::NotSynchronized, "no configuration from the controller yet");
    let mesh = worker.waypoint.proxy.mesh.mesh().ok_or_else(not_synchronized)?;
    let backend = backend(downstream, &mesh, server_name).map_err(|failure| ending_from(&failure))?;
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
        Failure::NoRoute => ending::unmade(Reason::RouteMissing, failure.to_string()),
        Failure::NoBackend | Failure::InvalidBackend(_) => {
            ending::unmade(Reason::BackendInvalid, failure.to_string())
        }
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
