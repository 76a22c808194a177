//! HTTP/1.1 from a client that proves nothing: [`connection`]. It is there to measure requests beside proxies
//! without HBONE (`examples/plain.rs`). The program itself never serves it: everything that a waypoint says
//! of its clients rests on their certificates (`docs/decisions/319`).

use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::Denial;
use ambit_core::fronted::fronted;
use ambit_core::model::Identity;
use ambit_hbone::request::ConnectRequest;
use ambit_hbone::server::Peer;
use tokio::net::TcpStream;

use crate::downstream::Downstream;
use crate::http_server;
use crate::worker::Worker;

/// Serves requests on one connection to its end, as if its client had proven this identity and dialled this
/// address.
///
/// # Errors
/// The waypoint has no configuration, or does not stand in front of the address.
pub async fn connection(
    worker: Arc<Worker>,
    stream: TcpStream,
    (client, identity): (SocketAddr, Identity),
    dialled: SocketAddr,
) -> Result<(), Denial> {
    let unknown = || Denial::DestinationUnknown(dialled);
    let mesh = worker.waypoint.proxy.mesh.mesh().ok_or_else(unknown)?;
    let own = worker.waypoint.own(&mesh).ok_or_else(unknown)?;
    let fronted = fronted(&mesh, own, &identity.namespace, dialled)?;
    let (peer, request) = (Peer { identity, address: client }, ConnectRequest::to(dialled));
    let asked = (&peer, &request);
    let downstream = Arc::new(Downstream::new(worker.clone(), &mesh, own, asked, (dialled, fronted)));
    http_server::http1(downstream, stream).await;
    Ok(())
}
