//! Connections to this node's workloads: tunnels from peers ([`tunnels`]) and plaintext that must be checked
//! ([`plaintext`]).
//!
//! peer certificate → `inbound::authorize_tunnel` → `Permit` → dial the application → 200 → relay → report.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ambit_core::inbound;
use ambit_core::mesh::Mesh;
use ambit_core::model::{Identity, Workload, WorkloadUid};
use ambit_core::policy::{self, Decision, Permit};
use ambit_core::{Denial, Reason};
use ambit_daemon_kit::telemetry::connection::{Direction, End, Ending, Facts, Flag, Path, failed};
use ambit_hbone::Error as HboneError;
use ambit_hbone::request::{Authority, ConnectRequest};
use ambit_hbone::server::{Incoming, Peer};
use ambit_loader::HBONE_PORT;
use http::StatusCode;
use tokio::net::TcpStream;
use tokio::time::{error::Elapsed, timeout};

use crate::connections::Registered;
use crate::daemon::Node;
use crate::dial;
use crate::pods::Pod;
use crate::relay::{self, Far};
use crate::shares::Held;
use crate::{health, report, socket};

/// Serves one peer's HBONE connection to its end; each tunnel on it gets a task of its own.
pub(crate) async fn tunnels(node: Arc<Node>, pod: Arc<Pod>, stream: TcpStream, client: SocketAddr) {
    let since = Instant::now();
    let local = stream.local_addr().unwrap_or_else(|_| SocketAddr::new(client.ip(), HBONE_PORT));
    let workload = node.state.workload(&pod.uid);
    let aliases = workload.map_or_else(Default::default, |workload| workload.trust_domain_aliases.clone());
    let config = match pod.server_config(aliases).await {
        Ok(config) => config,
        Err(error) => {
            socket::reset(stream);
            let ending = report::unmade(Reason::CertificateMissing, error);
            failed(&facts(&node, &pod, client, local, None), since, &ending);
            return;
        }
    };
    let handle = {
        let (node, pod) = (node.clone(), pod.clone());
        move |incoming| tunnel(node.clone(), pod.clone(), local, incoming)
    };
    // A pod that was released takes no new tunnels over the connections its peers still have.
    let drain = async {
        tokio::select! {
            () = node.drain.started() => {}
            () = pod.released.cancelled() => {}
        }
    };
    let served = node.server.serve(&pod.clients, stream, config, drain, handle);
    let served = tokio::select! {
        served = served => served,
        () = node.drain.cut() => return,
    };
    match served {
        Ok(()) => {}
        Err(
            error @ (HboneError::Connection { .. }
            | HboneError::PingTimeout { .. }
            | HboneError::CertificateExpired { .. }),
        ) => {
            tracing::debug!(uid = %pod.uid, %client, error = error.chain(), "a peer's connection ended");
        }
        Err(error) => {
            let reason = match error {
                HboneError::TooManyConnections { .. } => Reason::PeerConnectionsExhausted,
                HboneError::TooManyHandshakes => Reason::HandshakesExhausted,
                _ => Reason::TlsFailed,
            };
            let ending = report::unmade(reason, error.chain());
            failed(&facts(&node, &pod, client, local, None), since, &ending);
        }
    }
}

/// Reports a connection that was refused because its pod has as many as it may.
pub(crate) fn exhausted(node: &Node, pod: &Pod, client: SocketAddr, local: SocketAddr) {
    failed(&facts(node, pod, client, local, None), Instant::now(), &report::exhausted(&pod.uid));
}

/// One tunnel, from its request to its report.
async fn tunnel(node: Arc<Node>, pod: Arc<Pod>, local: SocketAddr, incoming: Incoming) {
    let _hold = node.drain.hold();
    // For the application's socket.
    let held = node.shares.take(&pod.share, 1);
    // Boxed, so that an open tunnel does not keep the memory that making it took.
    let made = Box::pin(open_tunnel(&node, &pod, local, incoming, held.as_ref())).await;
    drop(pod);
    if let Some((registered, application, far)) = made {
        relay::run(&node, registered, application, far).await;
    }
}

/// Decides about a tunnel and answers its request; none if the answer was no, which is reported then.
async fn open_tunnel(
    node: &Node,
    pod: &Pod,
    local: SocketAddr,
    incoming: Incoming,
    held: Option<&Held>,
) -> Option<(Registered, TcpStream, Far)> {
    let since = Instant::now();
    let Incoming { peer, request, mut responder } = incoming;
    let client = forwarded(&request, &peer);
    let mut facts = facts(node, pod, client, local, Some(&peer.identity));
    facts.path = Path::Tunnel;
    let making = async {
        if held.is_none() {
            let ending = report::exhausted(&pod.uid);
            return Err(Refusal { status: StatusCode::SERVICE_UNAVAILABLE, ending });
        }
        make_tunnel(node, pod, &peer, &request, client, &mut facts).await
    };
    let made = tokio::select! {
        made = timeout(node.config.connect_timeout(), making) => {
            made.unwrap_or_else(|_: Elapsed| Err(too_late(node)))
        }
        () = responder.abandoned() => {
            let error = "the peer gave up before the application answered";
            failed(&facts, since, &Ending { flag: Flag::ConnectFailed, ..report::unmade(Reason::Reset, error) });
            return None;
        }
    };
    let (mesh, permit, application) = match made {
        Ok(made) => made,
        Err(Refusal { status, ending }) => {
            responder.refuse(status);
            failed(&facts, since, &ending);
            return None;
        }
    };
    match responder.accept() {
        Ok(tunnel) => Some((enter(node, facts, &permit, &mesh), application, Far::Tunnel(tunnel))),
        Err(error) => {
            socket::reset(application);
            failed(&facts, since, &report::unmade(Reason::TunnelFailed, error.chain()));
            None
        }
    }
}

/// One plaintext connection, from its acceptance to its report.
pub(crate) async fn plaintext(
    node: Arc<Node>,
    pod: Arc<Pod>,
    stream: TcpStream,
    client: SocketAddr,
    local: SocketAddr,
) {
    match Box::pin(open_plaintext(&node, &pod, client, local)).await {
        Some((registered, application)) => {
            drop(pod);
            relay::run(&node, registered, application, Far::Plain(stream)).await;
        }
        None => socket::reset(stream),
    }
}

/// Decides about a plaintext connection; none if the answer was no, which is reported then.
async fn open_plaintext(
    node: &Node,
    pod: &Pod,
    client: SocketAddr,
    local: SocketAddr,
) -> Option<(Registered, TcpStream)> {
    let since = Instant::now();
    let mut facts = facts(node, pod, client, local, None);
    let making = make_plaintext(node, pod, client, local, &mut facts);
    match timeout(node.config.connect_timeout(), making)
        .await
        .unwrap_or_else(|_: Elapsed| Err(too_late(node)))
    {
        Ok((mesh, permit, application)) => Some((enter(node, facts, &permit, &mesh), application)),
        Err(Refusal { ending, .. }) => {
            failed(&facts, since, &ending);
            None
        }
    }
}

/// Enters a permitted connection among the open ones. What it was decided with is given back here: a
/// connection may outlive many meshes.
fn enter(node: &Node, facts: Facts, permit: &Permit, mesh: &Arc<Mesh>) -> Registered {
    let registered = node.connections.open(facts, permit.policy().cloned());
    if let Some(now) = node.state.mesh()
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

async fn make_tunnel(
    node: &Node,
    pod: &Pod,
    peer: &Peer,
    request: &ConnectRequest,
    client: SocketAddr,
    facts: &mut Facts,
) -> Result<Made, Refusal> {
    let Authority::Address(authority) = request.authority else {
        let error = format!("{} is not an address of {}", request.authority, pod.uid);
        let ending = report::unmade(Reason::BadRequest, error);
        return Err(Refusal { status: StatusCode::BAD_REQUEST, ending });
    };
    facts.hbone_address = Some(authority);
    let mesh = wait(node, pod).await?;
    know(facts, &mesh, &pod.uid, client, authority);
    let decision = inbound::authorize_tunnel(
        &mesh,
        &pod.uid,
        authority,
        &peer.identity,
        peer.address.ip().to_canonical(),
    );
    let permit = decide(decision, pod, facts)?;
    let application = connect(node, pod, &permit, client).await?;
    Ok((mesh, permit, application))
}

async fn make_plaintext(
    node: &Node,
    pod: &Pod,
    client: SocketAddr,
    local: SocketAddr,
    facts: &mut Facts,
) -> Result<Made, Refusal> {
    let mesh = wait(node, pod).await?;
    know(facts, &mesh, &pod.uid, client, local);
    let peer = policy::Request { identity: None, source: client.ip(), destination: local };
    let permit = decide(policy::authorize(&mesh, &pod.uid, &peer), pod, facts)?;
    let application = connect(node, pod, &permit, client).await?;
    Ok((mesh, permit, application))
}

async fn wait(node: &Node, pod: &Pod) -> Result<Arc<Mesh>, Refusal> {
    node.state.wait(&pod.uid).await.ok_or_else(|| {
        let error = "no configuration from the controller yet";
        let ending = report::unmade(Reason::NotSynchronized, error);
        Refusal { status: StatusCode::SERVICE_UNAVAILABLE, ending }
    })
}

fn decide(decision: Decision, pod: &Pod, facts: &Facts) -> Result<Permit, Refusal> {
    for dry_run in decision.dry_run {
        report::dry_run(&dry_run, &pod.uid, facts);
    }
    decision.outcome.map_err(|denial| {
        let ending = report::denied(&denial);
        let status = match denial {
            _ if ending.flag == Flag::Denied => StatusCode::UNAUTHORIZED,
            // It is leaving: the peer may find another endpoint.
            Denial::WorkloadUnknown(_) => StatusCode::SERVICE_UNAVAILABLE,
            // Not a port or an address that tunnels to this pod may end at.
            _ => StatusCode::BAD_REQUEST,
        };
        Refusal { status, ending }
    })
}

async fn connect(node: &Node, pod: &Pod, permit: &Permit, client: SocketAddr) -> Result<TcpStream, Refusal> {
    let since = Instant::now();
    let application = dial::application(node, pod, permit.address(), client).await;
    if application.is_ok() {
        health::APPLICATION_CONNECT.observe("inbound", since.elapsed());
    }
    application.map_err(|failure| Refusal { status: StatusCode::SERVICE_UNAVAILABLE, ending: failure.ending })
}

fn too_late(node: &Node) -> Refusal {
    let error = format!("the application did not accept within {:?}", node.config.connect_timeout());
    let ending = report::unmade(Reason::ConnectTimeout, error);
    Refusal { status: StatusCode::SERVICE_UNAVAILABLE, ending }
}

/// The address the application sees as its client: what the peer's daemon says, as long as it says one of the
/// peer's own address. Anything else would let one pod speak in another's name.
fn forwarded(request: &ConnectRequest, peer: &Peer) -> SocketAddr {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let address = canonical(peer.address);
    match request.forwarded.map(canonical) {
        Some(client) if client.ip() == address.ip() && client.port() != 0 => client,
        _ => address,
    }
}

/// What is known before anything is decided.
fn facts(
    node: &Node,
    pod: &Pod,
    client: SocketAddr,
    local: SocketAddr,
    identity: Option<&Identity>,
) -> Facts {
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    let workload = node.state.workload(&pod.uid);
    let own = workload.as_deref().map(Workload::identity).filter(|_| identity.is_some());
    Facts {
        direction: Direction::Inbound,
        path: Path::Plaintext,
        mutual_tls: identity.is_some(),
        source: End { address: client, workload: None, identity: identity.cloned() },
        destination: End { address: local, workload, identity: own },
        hbone_address: None,
        service: None,
    }
}

/// Adds what the mesh knows of both ends. The source's workload is a name for telemetry, never for decisions:
/// it is the one that has the address, if it has the certificate's identity too.
fn know(facts: &mut Facts, mesh: &Mesh, pod: &WorkloadUid, client: SocketAddr, application: SocketAddr) {
    let destination = mesh.workload(pod).cloned();
    let service = |workload| inbound::service_behind(mesh, workload, application.port());
    facts.service = destination.as_deref().and_then(service).cloned();
    facts.destination.workload = destination;
    let source = mesh.workload_by_address(client.ip()).cloned();
    facts.source.workload = source.filter(|workload| {
        facts.source.identity.as_ref().is_none_or(|identity| workload.identity() == *identity)
    });
}

#[cfg(test)]
mod tests {
    use ambit_core::mesh::Change;

    use super::*;
    use crate::testing::{endpoint_of, mesh, put, service, workload};

    #[test]
    fn a_peer_speaks_only_for_its_own_address() {
        let rows = [
            ("its own address", Some("10.0.0.1:4000"), "10.0.0.1:999", "10.0.0.1:4000"),
            ("another's", Some("10.0.0.2:4000"), "10.0.0.1:999", "10.0.0.1:999"),
            ("loopback", Some("127.0.0.1:4000"), "10.0.0.1:999", "10.0.0.1:999"),
            ("its own, mapped", Some("[::ffff:10.0.0.1]:4000"), "10.0.0.1:999", "10.0.0.1:4000"),
            ("mapped on the socket", Some("10.0.0.1:4000"), "[::ffff:10.0.0.1]:999", "10.0.0.1:4000"),
            ("no port", Some("10.0.0.1:0"), "10.0.0.1:999", "10.0.0.1:999"),
            ("nothing", None, "10.0.0.1:999", "10.0.0.1:999"),
        ];
        for (name, said, address, expected) in rows {
            let identity = workload("web", &[]).identity();
            let peer = Peer { identity, address: address.parse().unwrap() };
            let request = ConnectRequest {
                forwarded: said.map(|said| said.parse().unwrap()),
                ..ConnectRequest::to("10.0.1.1:8080".parse().unwrap())
            };
            assert_eq!(forwarded(&request, &peer), expected.parse().unwrap(), "{name}");
        }
    }

    #[test]
    fn the_source_is_named_only_if_its_certificate_agrees() {
        let mesh = mesh([
            put(workload("web", &["10.0.0.1"])),
            Change::PutService(Arc::new(service("cart", "10.96.0.1"))),
            put(endpoint_of(workload("cart", &["10.0.1.1"]), "cart")),
        ]);
        let (web, other) = (workload("web", &[]).identity(), workload("other", &[]).identity());
        let rows = [
            ("its certificate", Some(web), "10.0.0.1", Some("web")),
            ("another's certificate", Some(other), "10.0.0.1", None),
            ("plaintext", None, "10.0.0.1", Some("web")),
            ("an address nobody has", None, "10.0.0.77", None),
        ];
        for (name, identity, address, expected) in rows {
            let client = SocketAddr::new(address.parse().unwrap(), 4000);
            let application = "10.0.1.1:8080".parse().unwrap();
            let end = |address, identity| End { address, workload: None, identity };
            let mut facts = Facts {
                direction: Direction::Inbound,
                path: Path::Tunnel,
                mutual_tls: identity.is_some(),
                source: end(client, identity),
                destination: end(application, None),
                hbone_address: None,
                service: None,
            };
            know(&mut facts, &mesh, &crate::testing::uid("cart"), client, application);
            assert_eq!(facts.source.workload.as_ref().map(|workload| &*workload.name), expected, "{name}");
            assert_eq!(facts.destination.workload.as_ref().map(|workload| &*workload.name), Some("cart"));
            assert_eq!(facts.service.as_ref().map(|service| &*service.name), Some("cart"));
        }
    }
}
