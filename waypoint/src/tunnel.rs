//! One tunnel of a client: [`serve`].
//!
//! what was dialled → whether this waypoint stands in front of it → what is spoken → HTTP or TCP.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use ambit_core::fronted::fronted;
use ambit_core::model::AppProtocol;
use ambit_core::protocol::Sniffed;
use ambit_core::route::PortRoutes;
use ambit_core::{Denial, Reason};
use ambit_hbone::Tunnel;
use ambit_hbone::request::{Authority, ConnectRequest};
use ambit_hbone::server::{Incoming, Peer, Responder};
use ambit_proxy::report::{ConnectionInfo, Direction, Ending, Party, Path, ending, failed};
use http::StatusCode;

use crate::downstream::Downstream;
use crate::http_server;
use crate::sniff::{self, HttpVersion};
use crate::stream::{Downlink, Patience};
use crate::tcp;
use crate::worker::Worker;

/// Serves one tunnel to its end.
pub(crate) async fn serve(worker: Arc<Worker>, incoming: Incoming) {
    let since = Instant::now();
    let waypoint = worker.waypoint.clone();
    let _hold = waypoint.proxy.drain.hold();
    let Incoming { peer, request, responder } = incoming;
    match Box::pin(decide(&worker, &peer, &request)).await {
        Ok(downstream) => {
            let carried = Box::pin(carry(Arc::new(downstream), responder));
            tokio::select! {
                () = carried => {}
                () = waypoint.proxy.drain.cut() => {}
            }
        }
        Err(Refusal { status, ending }) => {
            responder.refuse(status);
            let info = ConnectionInfo {
                direction: Direction::Through,
                path: Path::Waypoint,
                mutual_tls: true,
                source: Party { identity: Some(peer.identity.clone()), ..Party::at(peer.address) },
                destination: Party::at(peer.address),
                hbone_address: match request.authority {
                    Authority::Address(address) => Some(address),
                    Authority::Host { .. } => None,
                },
                client: None,
                service: None,
            };
            failed(&info, since, &ending);
        }
    }
}

/// A tunnel that is not opened: how it is answered, and how it is reported.
struct Refusal {
    status: StatusCode,
    ending: Ending,
}

async fn decide(worker: &Arc<Worker>, peer: &Peer, request: &ConnectRequest) -> Result<Downstream, Refusal> {
    let waypoint = &worker.waypoint;
    let Authority::Address(dialled) = request.authority else {
        let error = format!("{} is not an address", request.authority);
        let ending = ending::unmade(Reason::BadRequest, error);
        return Err(Refusal { status: StatusCode::BAD_REQUEST, ending });
    };
    let uid = &waypoint.served.workload.uid;
    let unready = || {
        let ending = ending::unmade(Reason::NotSynchronized, "no configuration from the controller yet");
        Refusal { status: StatusCode::SERVICE_UNAVAILABLE, ending }
    };
    let mesh = waypoint.proxy.mesh.wait(uid).await.ok_or_else(unready)?;
    let own = waypoint.own(&mesh).ok_or_else(unready)?;
    let fronted =
        fronted(&mesh, own, &peer.identity.namespace, dialled).map_err(|denial| refusal(&denial))?;
    Ok(Downstream::new(worker.clone(), &mesh, own, (peer, request), (dialled, fronted)))
}

fn refusal(denial: &Denial) -> Refusal {
    let status = match denial {
        // Somebody knows more or less than this proxy does: it may be tried again.
        Denial::DestinationUnknown(_) | Denial::NotFronted(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    Refusal { status, ending: ending::denied(denial) }
}

/// What is to be made of a tunnel before its first byte.
enum Expected {
    Tcp,
    Spoken(Speech),
}

/// What a client says first, where the tunnel is opened to hear it.
enum Speech {
    Http,
    Tls,
    Anything,
}

async fn carry(downstream: Arc<Downstream>, responder: Responder) {
    let speech = match expected(&downstream) {
        // Its client learns as if there were no waypoint whether the server can be reached.
        Expected::Tcp => return tcp::serve_unopened(downstream, responder).await,
        Expected::Spoken(speech) => speech,
    };
    let tunnel = match responder.accept() {
        Ok(tunnel) => tunnel,
        Err(error) => return tracing::debug!(error = error.chain(), "failed to open a client's tunnel"),
    };
    let carried = match speech {
        Speech::Http => carry_http(downstream, tunnel).await,
        Speech::Tls => carry_tls(downstream, tunnel).await,
        Speech::Anything => carry_anything(downstream, tunnel).await,
    };
    if let Err(error) = carried {
        tracing::debug!(%error, "client went away before it said anything");
    }
}

async fn carry_http(downstream: Arc<Downstream>, tunnel: Tunnel) -> io::Result<()> {
    let limits = downstream.worker.waypoint.limits;
    let patience = Patience { head: limits.head, idle: limits.idle };
    if let Some((version, link)) = sniff::http_version(tunnel, patience).await? {
        http(downstream, version, link).await;
    }
    Ok(())
}

async fn carry_anything(downstream: Arc<Downstream>, tunnel: Tunnel) -> io::Result<()> {
    let limit = downstream.worker.waypoint.limits.sniff;
    let (sniffed, link) = sniff::sniff(tunnel, limit).await?;
    match sniffed {
        Sniffed::Http1 => http(downstream, HttpVersion::Http1, link).await,
        Sniffed::Http2 => http(downstream, HttpVersion::Http2, link).await,
        Sniffed::Tls | Sniffed::Tcp | Sniffed::Undecided => tcp::serve(downstream, None, link).await,
    }
    Ok(())
}

/// The client must begin, and say whom it wants: TLSRoutes route by that.
async fn carry_tls(downstream: Arc<Downstream>, tunnel: Tunnel) -> io::Result<()> {
    match sniff::client_hello(tunnel, downstream.worker.waypoint.limits.head).await? {
        Some((server_name, link)) => tcp::serve(downstream, server_name.as_deref(), link).await,
        None => {
            tcp::refuse(&downstream, "the client does not begin with TLS, and a TLSRoute serves the port");
        }
    }
    Ok(())
}

async fn http(downstream: Arc<Downstream>, version: HttpVersion, link: Downlink) {
    match version {
        HttpVersion::Http1 => http_server::http1(downstream, link).await,
        HttpVersion::Http2 => http_server::http2(downstream, link).await,
    }
}

/// A port with routes speaks what they route whatever it is declared to be, or silence would be a way around
/// them (`docs/decisions/300` and `317`).
fn expected(downstream: &Downstream) -> Expected {
    let routed = routed(downstream);
    match (routed, downstream.declared()) {
        (Some(Routed::Tls), _) => Expected::Spoken(Speech::Tls),
        (Some(Routed::Tcp), _) | (_, AppProtocol::Tcp | AppProtocol::Tls) => Expected::Tcp,
        (_, AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc)
        | (Some(Routed::Requests), AppProtocol::Unknown) => Expected::Spoken(Speech::Http),
        (None, AppProtocol::Unknown) => Expected::Spoken(Speech::Anything),
    }
}

/// What the routes of the dialled port route.
enum Routed {
    Requests,
    Tls,
    Tcp,
}

fn routed(downstream: &Downstream) -> Option<Routed> {
    let mesh = downstream.worker.waypoint.proxy.mesh.mesh()?;
    Some(match downstream.routes(&mesh)? {
        PortRoutes::Requests(_) => Routed::Requests,
        PortRoutes::Connections(table) if table.is_tls() => Routed::Tls,
        PortRoutes::Connections(_) => Routed::Tcp,
    })
}
