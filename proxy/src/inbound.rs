//! Connections to a served workload: HBONE connections of peers with their tunnels ([`tunnels`]), and
//! plaintext that must be checked ([`plaintext`]).
//!
//! peer certificate → `inbound::authorize_tunnel` → `Permit` → dial the application → 200 → relay → report.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ambit_core::inbound::{self, HBONE_PORT};
use ambit_core::mesh::Mesh;
use ambit_core::model::{Identity, Workload, WorkloadUid};
use ambit_core::policy::{self, Decision, NamedClient, Permit};
use ambit_core::{Denial, Reason};
use ambit_hbone::Error as HboneError;
use ambit_hbone::request::{Authority, ConnectRequest};
use ambit_hbone::server::{Incoming, Peer};
use http::StatusCode;
use tokio::net::TcpStream;
use tokio::time::{error::Elapsed, timeout};

use crate::connections::Registered;
use crate::metrics::APPLICATION_CONNECT;
use crate::proxy::Proxy;
use crate::relay::{self, Remote};
use crate::report::{ConnectionInfo, Direction, Ending, Flag, Party, Path, ending, failed};
use crate::shares::Held;
use crate::state::MeshState;
use crate::workload::{LocalWorkload, Served};
use crate::{dial, socket};

/// Serves one peer's HBONE connection to its end; each tunnel on it gets a task of its own.
pub async fn tunnels<W: Served>(proxy: Arc<Proxy>, served: Arc<W>, stream: TcpStream, client: SocketAddr) {
    let since = Instant::now();
    let workload = served.workload();
    let local = stream.local_addr().unwrap_or_else(|_| SocketAddr::new(client.ip(), HBONE_PORT));
    let known = proxy.mesh.workload(&workload.uid);
    let aliases = known.map_or_else(Default::default, |workload| workload.trust_domain_aliases.clone());
    let config = match workload.server_config(aliases).await {
        Ok(config) => config,
        Err(error) => {
            socket::reset(stream);
            let ending = ending::unmade(Reason::CertificateMissing, error);
            failed(&info(&proxy.mesh, workload, client, local, None), since, &ending);
            return;
        }
    };
    let handle = {
        let (proxy, served) = (proxy.clone(), served.clone());
        move |incoming| tunnel(proxy.clone(), served.clone(), local, incoming)
    };
    // A workload that was released takes no new tunnels over the connections that its peers still have.
    let drain = async {
        tokio::select! {
            () = proxy.drain.started() => {}
            () = workload.released.cancelled() => {}
        }
    };
    let serving = proxy.server.serve(&workload.clients, stream, config, drain, handle);
    let outcome = tokio::select! {
        outcome = serving => outcome,
        () = proxy.drain.cut() => return,
    };
    match outcome {
        Ok(()) => {}
        Err(
            error @ (HboneError::Connection { .. }
            | HboneError::PingTimeout { .. }
            | HboneError::CertificateExpired { .. }),
        ) => {
            tracing::debug!(uid = %workload.uid, %client, error = error.chain(), "HBONE connection ended");
        }
        Err(error) => {
            let reason = match error {
                HboneError::TooManyConnections { .. } => Reason::PeerConnectionsExhausted,
                HboneError::TooManyHandshakes => Reason::HandshakesExhausted,
                _ => Reason::TlsFailed,
            };
            let ending = ending::unmade(reason, error.chain());
            failed(&info(&proxy.mesh, workload, client, local, None), since, &ending);
        }
    }
}

/// Reports a connection that was refused because its workload holds its share of descriptors.
pub fn exhausted(mesh: &MeshState, workload: &LocalWorkload, client: SocketAddr, local: SocketAddr) {
    let ending = ending::exhausted(&workload.uid);
    failed(&info(mesh, workload, client, local, None), Instant::now(), &ending);
}

/// One tunnel, from its request to its report.
async fn tunnel<W: Served>(proxy: Arc<Proxy>, served: Arc<W>, local: SocketAddr, incoming: Incoming) {
    let _hold = proxy.drain.hold();
    // For the application's socket.
    let held = proxy.shares.take(&served.workload().share, 1);
    // Boxed, so that an open tunnel does not keep the memory that making it took.
    let made = Box::pin(open_tunnel(&proxy, &*served, local, incoming, held.as_ref())).await;
    drop(served);
    if let Some((registered, application, remote)) = made {
        relay::run(&proxy.drain, registered, application, remote).await;
    }
}

/// Decides about a tunnel and answers its request; none if it was refused, which is reported then.
async fn open_tunnel<W: Served>(
    proxy: &Proxy,
    served: &W,
    local: SocketAddr,
    incoming: Incoming,
    held: Option<&Held>,
) -> Option<(Registered, TcpStream, Remote)> {
    let since = Instant::now();
    let workload = served.workload();
    let Incoming { peer, request, mut responder } = incoming;
    let client = forwarded(&request, &peer);
    let mut info = info(&proxy.mesh, workload, client, local, Some(&peer.identity));
    info.path = Path::Tunnel;
    let making = async {
        if held.is_none() {
            let ending = ending::exhausted(&workload.uid);
            return Err(Refusal { status: StatusCode::SERVICE_UNAVAILABLE, ending });
        }
        make_tunnel(&proxy.mesh, served, &peer, &request, client, &mut info).await
    };
    let made = tokio::select! {
        made = timeout(proxy.timeouts.connect, making) => {
            made.unwrap_or_else(|_: Elapsed| Err(too_late(proxy)))
        }
        () = responder.abandoned() => {
            let error = "the peer gave up before the application answered";
            let ending = Ending { flag: Flag::ConnectFailed, ..ending::unmade(Reason::Reset, error) };
            failed(&info, since, &ending);
            return None;
        }
    };
    let (mesh, permit, application) = match made {
        Ok(made) => made,
        Err(Refusal { status, ending }) => {
            responder.refuse(status);
            failed(&info, since, &ending);
            return None;
        }
    };
    match responder.accept() {
        Ok(tunnel) => Some((register(proxy, info, &permit, &mesh), application, Remote::Tunnel(tunnel))),
        Err(error) => {
            socket::reset(application);
            failed(&info, since, &ending::unmade(Reason::TunnelFailed, error.chain()));
            None
        }
    }
}

/// One plaintext connection, from its acceptance to its report.
pub async fn plaintext<W: Served>(
    proxy: Arc<Proxy>,
    served: Arc<W>,
    stream: TcpStream,
    client: SocketAddr,
    local: SocketAddr,
) {
    match Box::pin(open_plaintext(&proxy, &*served, client, local)).await {
        Some((registered, application)) => {
            drop(served);
            relay::run(&proxy.drain, registered, application, Remote::Plain(stream)).await;
        }
        None => socket::reset(stream),
    }
}

/// Decides about a plaintext connection; none if it was refused, which is reported then.
async fn open_plaintext<W: Served>(
    proxy: &Proxy,
    served: &W,
    client: SocketAddr,
    local: SocketAddr,
) -> Option<(Registered, TcpStream)> {
    let since = Instant::now();
    let mut info = info(&proxy.mesh, served.workload(), client, local, None);
    let making = make_plaintext(&proxy.mesh, served, client, local, &mut info);
    match timeout(proxy.timeouts.connect, making).await.unwrap_or_else(|_: Elapsed| Err(too_late(proxy))) {
        Ok((mesh, permit, application)) => Some((register(proxy, info, &permit, &mesh), application)),
        Err(Refusal { ending, .. }) => {
            failed(&info, since, &ending);
            None
        }
    }
}

/// Registers a permitted connection among the open ones. The mesh it was decided with is released here: a
/// connection may outlive many meshes.
fn register(proxy: &Proxy, info: ConnectionInfo, permit: &Permit, mesh: &Arc<Mesh>) -> Registered {
    let registered = proxy.connections.open(info, permit.policy().cloned());
    if let Some(now) = proxy.mesh.mesh()
        && !Arc::ptr_eq(&now, mesh)
    {
        registered.recheck(&now);
    }
    registered
}

/// A request that is not carried out: how it is answered, and how it is reported.
struct Refusal {
    status: StatusCode,
    ending: Ending,
}

type Made = (Arc<Mesh>, Permit, TcpStream);

async fn make_tunnel<W: Served>(
    state: &MeshState,
    served: &W,
    peer: &Peer,
    request: &ConnectRequest,
    client: SocketAddr,
    info: &mut ConnectionInfo,
) -> Result<Made, Refusal> {
    let uid = &served.workload().uid;
    let Authority::Address(authority) = request.authority else {
        let error = format!("{} is not an address of {uid}", request.authority);
        let ending = ending::unmade(Reason::BadRequest, error);
        return Err(Refusal { status: StatusCode::BAD_REQUEST, ending });
    };
    info.hbone_address = Some(authority);
    let mesh = configuration(state, uid).await?;
    name_parties(info, &mesh, uid, client, authority);
    let source = peer.address.ip().to_canonical();
    info.client = named(request);
    let named = info.client.as_ref();
    let decision = inbound::authorize_tunnel_for(&mesh, uid, authority, &peer.identity, source, named);
    let permit = permitted(decision, uid, info)?;
    let passed = policy::believed(&mesh, uid, &peer.identity, info.client.as_ref()).is_some();
    if passed {
        info.path = Path::Waypoint;
    }
    // The application sees the client that its waypoint verified.
    let verified = request.forwarded.filter(|address| passed && address.port() != 0);
    let seen =
        verified.map_or(client, |address| SocketAddr::new(address.ip().to_canonical(), address.port()));
    let application = connect(served, &permit, seen).await?;
    Ok((mesh, permit, application))
}

async fn make_plaintext<W: Served>(
    state: &MeshState,
    served: &W,
    client: SocketAddr,
    local: SocketAddr,
    info: &mut ConnectionInfo,
) -> Result<Made, Refusal> {
    let uid = &served.workload().uid;
    let mesh = configuration(state, uid).await?;
    name_parties(info, &mesh, uid, client, local);
    let peer = policy::Request { identity: None, source: client.ip(), destination: local };
    let permit = permitted(policy::authorize(&mesh, uid, &peer), uid, info)?;
    let application = connect(served, &permit, client).await?;
    Ok((mesh, permit, application))
}

async fn configuration(state: &MeshState, uid: &WorkloadUid) -> Result<Arc<Mesh>, Refusal> {
    state.wait(uid).await.ok_or_else(|| {
        let error = "no configuration from the controller yet";
        let ending = ending::unmade(Reason::NotSynchronized, error);
        Refusal { status: StatusCode::SERVICE_UNAVAILABLE, ending }
    })
}

fn permitted(decision: Decision, uid: &WorkloadUid, info: &ConnectionInfo) -> Result<Permit, Refusal> {
    for dry_run in decision.dry_run {
        ending::dry_run(&dry_run, uid, info);
    }
    decision.outcome.map_err(|denial| {
        let ending = ending::denied(&denial);
        let status = match denial {
            _ if ending.flag == Flag::Denied => StatusCode::UNAUTHORIZED,
            // It is leaving: the peer may find another endpoint.
            Denial::WorkloadUnknown(_) => StatusCode::SERVICE_UNAVAILABLE,
            // Not a port or an address that tunnels to this workload may end at.
            _ => StatusCode::BAD_REQUEST,
        };
        Refusal { status, ending }
    })
}

async fn connect<W: Served>(served: &W, permit: &Permit, client: SocketAddr) -> Result<TcpStream, Refusal> {
    let since = Instant::now();
    let application = dial::application(served, permit, client).await;
    if application.is_ok() {
        APPLICATION_CONNECT.observe("inbound", since.elapsed());
    }
    application.map_err(|failure| Refusal { status: StatusCode::SERVICE_UNAVAILABLE, ending: failure.ending })
}

fn too_late(proxy: &Proxy) -> Refusal {
    let error = format!("the application did not accept within {:?}", proxy.timeouts.connect);
    let ending = ending::unmade(Reason::ConnectTimeout, error);
    Refusal { status: StatusCode::SERVICE_UNAVAILABLE, ending }
}

/// The client that the peer names, if it names one. Whether it is believed is for policy to say.
fn named(request: &ConnectRequest) -> Option<NamedClient> {
    let address = request.forwarded.map(|address| address.ip().to_canonical());
    request.client.clone().map(|identity| NamedClient { identity, address })
}

/// The address that the application sees as its client: the `Forwarded` address, if its IP is the peer's
/// (else a workload could impersonate another), otherwise the peer's own.
fn forwarded(request: &ConnectRequest, peer: &Peer) -> SocketAddr {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let address = canonical(peer.address);
    match request.forwarded.map(canonical) {
        Some(client) if client.ip() == address.ip() && client.port() != 0 => client,
        _ => address,
    }
}

/// What is known before anything is decided.
fn info(
    state: &MeshState,
    workload: &LocalWorkload,
    client: SocketAddr,
    local: SocketAddr,
    identity: Option<&Identity>,
) -> ConnectionInfo {
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    let workload = state.workload(&workload.uid);
    let own = workload.as_deref().map(Workload::identity).filter(|_| identity.is_some());
    ConnectionInfo {
        direction: Direction::Inbound,
        path: Path::Plaintext,
        mutual_tls: identity.is_some(),
        source: Party { identity: identity.cloned(), ..Party::at(client) },
        destination: Party { address: local, workload, identity: own },
        hbone_address: None,
        client: None,
        service: None,
    }
}

/// Adds what the mesh knows of both sides. The source's workload is a name for telemetry, never for
/// decisions: the one that has the address, if it also has the certificate's identity.
fn name_parties(
    info: &mut ConnectionInfo,
    mesh: &Mesh,
    uid: &WorkloadUid,
    client: SocketAddr,
    application: SocketAddr,
) {
    let destination = mesh.workload(uid).cloned();
    let service = |workload| inbound::service_behind(mesh, workload, application.port());
    info.service = destination.as_deref().and_then(service).cloned();
    info.destination.workload = destination;
    let source = mesh.workload_by_address(client.ip()).cloned();
    info.source.workload = source.filter(|workload| {
        info.source.identity.as_ref().is_none_or(|identity| workload.identity() == *identity)
    });
}

#[cfg(test)]
mod tests;
