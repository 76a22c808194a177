//! Connections the daemon makes from inside a pod's namespace: to peers' daemons ([`tunnel`]), to the pod's
//! own application ([`application`]), to endpoints outside the mesh ([`plain`]).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_core::Reason;
use ambit_core::model::{Workload, WorkloadKind};
use ambit_core::outbound::Tunnel as Plan;
use ambit_daemon_kit::telemetry::connection::Ending;
use ambit_hbone::Tunnel;
use ambit_hbone::client::{self, Connection};
use ambit_hbone::pool::{Dial, Key, PoolError};
use ambit_hbone::request::{Baggage, ConnectRequest};
use ambit_hbone::{Http2, tls};
use http::StatusCode;
use tokio::net::TcpStream;

use crate::daemon::Node;
use crate::kernel::Kernel;
use crate::pods::{Pod, Pods};
use crate::socket::Peer;
use crate::{health, report};

/// Why a connection could not be made.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) ending: Ending,
    /// It is the endpoint that failed: another of the service's may not.
    pub(crate) elsewhere: bool,
}

/// Why there is no connection to a peer's daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("the pod has left")]
    PodGone,
    #[error("certificate: {0}")]
    Certificate(String),
    #[error("marking the daemon's socket")]
    Mark(#[source] ambit_loader::Error),
    #[error("TCP connection")]
    Connect(#[source] io::Error),
    #[error(transparent)]
    Hbone(ambit_hbone::Error),
}

/// Makes the pool's connections, from the source pod's namespace and with its certificate.
pub(crate) struct PodDialer {
    pub(crate) pods: Arc<Pods>,
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) http2: Http2,
}

impl Dial for PodDialer {
    type Error = DialError;

    async fn dial(&self, key: &Key) -> Result<Connection, DialError> {
        let pod = self.pods.get(&key.source).ok_or(DialError::PodGone)?;
        let certificate = pod.certificate().await.map_err(DialError::Certificate)?;
        if certificate.identity != key.identity {
            return Err(DialError::Certificate(format!("{} is now {}", key.source, certificate.identity)));
        }
        let socket = pod.connecting(key.address, Peer::Remote).map_err(DialError::Connect)?;
        self.kernel.dataplane().mark_outbound(socket.as_fd()).map_err(DialError::Mark)?;
        let stream = socket.connect(key.address).await.map_err(DialError::Connect)?;
        let config = tls::client_config(&certificate, &key.peers);
        let since = Instant::now();
        let connection = client::connect(stream, config, &self.http2).await.map_err(DialError::Hbone)?;
        health::HANDSHAKE.observe("client", since.elapsed());
        Ok(connection)
    }
}

/// Opens a tunnel for a connection of the pod's application.
pub(crate) async fn tunnel(
    node: &Node,
    pod: &Pod,
    plan: &Plan,
    client: SocketAddr,
) -> Result<Tunnel, Failure> {
    // A connection made under an earlier certificate may still stand; who has no valid one now gets no tunnel
    // on it.
    pod.certificate()
        .await
        .map_err(|error| failure(Reason::CertificateMissing, format!("certificate: {error}"), false))?;
    let key = Key {
        source: pod.uid.clone(),
        identity: plan.source.identity(),
        peers: plan.identities.as_slice().into(),
        address: plan.peer,
    };
    // The other side believes only the address that the tunnel comes from, which is of the peer's family.
    let own = plan.source.addresses.iter().find(|address| address.is_ipv4() == plan.peer.is_ipv4());
    let request = ConnectRequest {
        baggage: Some(baggage(&plan.source)),
        forwarded: own.map(|address| SocketAddr::new(*address, client.port())),
        ..ConnectRequest::to(plan.authority)
    };
    node.pool.open(&key, &request).await.map_err(|error| pool_failure(&error))
}

/// Connects to the pod's own application, which will see `client` as its peer.
pub(crate) async fn application(
    node: &Node,
    pod: &Pod,
    address: SocketAddr,
    client: SocketAddr,
) -> Result<TcpStream, Failure> {
    let socket = pod.connecting(address, Peer::Local).map_err(|error| connect_failure(address, &error))?;
    node.kernel.dataplane().mark_inbound(socket.as_fd(), client).map_err(|error| mark_failure(&error))?;
    socket.connect(address).await.map_err(|error| connect_failure(address, &error))
}

/// Connects to something outside the mesh as the pod's application would.
pub(crate) async fn plain(node: &Node, pod: &Pod, address: SocketAddr) -> Result<TcpStream, Failure> {
    let socket = pod.connecting(address, Peer::Remote).map_err(|error| connect_failure(address, &error))?;
    node.kernel.dataplane().mark_outbound(socket.as_fd()).map_err(|error| mark_failure(&error))?;
    let limit = node.config.endpoint_timeout();
    match tokio::time::timeout(limit, socket.connect(address)).await {
        Ok(connected) => connected.map_err(|error| connect_failure(address, &error)),
        Err(_) => Err(too_slow(address, limit)),
    }
}

/// The addresses of a name, those of the wanted family first. The daemon asks, as its node does.
pub(crate) async fn resolve(name: &str, wanted: SocketAddr) -> Result<Vec<IpAddr>, Failure> {
    let found = tokio::net::lookup_host((name, wanted.port())).await;
    let found = found.map_err(|error| unresolved(name, &error.to_string()))?;
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
    addresses.sort_by_key(|address| address.is_ipv4() != wanted.is_ipv4());
    addresses.dedup();
    Ok(addresses)
}

/// A name that leads nowhere; another endpoint's may.
pub(crate) fn unresolved(name: &str, why: &str) -> Failure {
    failure(Reason::ConnectFailed, format!("resolving {name}: {why}"), true)
}

/// An endpoint that did not answer in its share of the time.
pub(crate) fn too_slow(address: SocketAddr, limit: Duration) -> Failure {
    let error = format!("{address} did not answer within {limit:?}");
    failure(Reason::ConnectTimeout, error, true)
}

fn failure(reason: Reason, error: String, elsewhere: bool) -> Failure {
    Failure { ending: report::unmade(reason, error), elsewhere }
}

fn connect_failure(address: SocketAddr, error: &io::Error) -> Failure {
    failure(Reason::ConnectFailed, format!("connecting to {address}: {error}"), true)
}

fn mark_failure(error: &ambit_loader::Error) -> Failure {
    let error = format!("marking the daemon's socket: {}", report::chain(error));
    failure(Reason::ConnectFailed, error, false)
}

fn pool_failure(error: &PoolError<DialError>) -> Failure {
    use ambit_hbone::Error as Hbone;
    let (reason, elsewhere) = match error {
        PoolError::Dial { source, .. } => match &**source {
            DialError::PodGone | DialError::Mark(_) => (Reason::ConnectFailed, false),
            DialError::Certificate(_) => (Reason::CertificateMissing, false),
            DialError::Connect(_) => (Reason::ConnectFailed, true),
            DialError::Hbone(Hbone::Connection { .. }) => (Reason::TunnelFailed, true),
            DialError::Hbone(_) => (Reason::TlsFailed, true),
        },
        PoolError::DialTimeout { .. } => (Reason::ConnectTimeout, true),
        PoolError::DialLost { .. } => (Reason::ConnectFailed, true),
        PoolError::Open { source: Hbone::Refused { status }, .. } => match *status {
            StatusCode::UNAUTHORIZED => (Reason::TunnelRefused, false),
            StatusCode::SERVICE_UNAVAILABLE => (Reason::ConnectFailed, true),
            _ => (Reason::TunnelFailed, false),
        },
        PoolError::Open { .. } => (Reason::TunnelFailed, true),
    };
    failure(reason, report::chain(error), elsewhere)
}

/// What the source says of itself, for the other side's telemetry.
fn baggage(source: &Workload) -> Baggage {
    let kind = match source.kind {
        WorkloadKind::Deployment => "deployment",
        WorkloadKind::CronJob => "cronjob",
        WorkloadKind::Pod => "pod",
        WorkloadKind::Job => "job",
    };
    Baggage {
        cluster: source.cluster.to_string(),
        namespace: source.namespace.to_string(),
        workload_kind: kind.to_owned(),
        workload: source.workload_name.to_string(),
        service: source.canonical_name.to_string(),
        version: source.canonical_revision.to_string(),
        region: source.locality.region.to_string(),
        zone: source.locality.zone.to_string(),
    }
}
