//! Connections that the proxy makes for a served workload: to peers' proxies ([`tunnel`], over a pool of
//! [`Dialer`]'s connections), to the workload's own application ([`application`], [`itself`]), to endpoints
//! outside the mesh ([`plain`]).

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_core::model::{Identity, Workload, WorkloadKind};
use ambit_core::outbound::{Local, Tunnel as Plan};
use ambit_core::policy::Permit;
use ambit_core::{Reason, chain};
use ambit_hbone::client::{self, Connection};
use ambit_hbone::pool::{Dial, Key, Pool, PoolError};
use ambit_hbone::request::{Baggage, ConnectRequest};
use ambit_hbone::{Http2, Tunnel, tls};
use http::StatusCode;
use tokio::net::TcpStream;

use crate::metrics::HANDSHAKE;
use crate::report::{Ending, ending};
use crate::workload::{LocalWorkload, Served, SocketError, Workloads};

/// Why a connection could not be made.
#[derive(Debug)]
pub struct Failure {
    /// As it is reported.
    pub ending: Ending,
    /// Retriable: the failure is this endpoint's; another endpoint may succeed.
    pub elsewhere: bool,
}

/// Why there is no connection to a peer's proxy.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The source is no longer served.
    #[error("failed to dial: the pod has left")]
    WorkloadGone,
    /// There is no certificate for the source.
    #[error("failed to get a certificate: {0}")]
    Certificate(String),
    /// There is no socket for the source.
    #[error(transparent)]
    Socket(SocketError),
    /// The peer cannot be reached.
    #[error("failed to connect over TCP")]
    Connect(#[source] io::Error),
    /// TLS or HTTP/2 failed.
    #[error(transparent)]
    Hbone(ambit_hbone::Error),
}

/// Makes the pool's connections, from the source workload's sockets and with its certificate.
pub struct Dialer<W> {
    /// The sources.
    pub workloads: Arc<Workloads<W>>,
    /// Limits and windows of each connection.
    pub http2: Http2,
}

impl<W> fmt::Debug for Dialer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("http2", &self.http2).finish_non_exhaustive()
    }
}

impl<W: Served> Dial for Dialer<W> {
    type Error = DialError;

    async fn dial(&self, key: &Key) -> Result<Connection, DialError> {
        let source = self.workloads.get(&key.source).ok_or(DialError::WorkloadGone)?;
        let certificate = source.workload().certificate().await.map_err(DialError::Certificate)?;
        if certificate.identity != key.identity {
            return Err(DialError::Certificate(format!("{} is now {}", key.source, certificate.identity)));
        }
        let socket = source.network_socket(key.address).map_err(DialError::Socket)?;
        let stream = socket.connect(key.address).await.map_err(DialError::Connect)?;
        let config = tls::client_config(&certificate, &key.peers);
        let since = Instant::now();
        let memory = source.workload().clients.memory();
        let connection =
            client::connect(stream, config, &self.http2, memory).await.map_err(DialError::Hbone)?;
        HANDSHAKE.observe("client", since.elapsed());
        Ok(connection)
    }
}

/// Opens a tunnel for a connection of the workload's application.
pub async fn tunnel<W: Served>(
    pool: &Pool<Dialer<W>>,
    workload: &LocalWorkload,
    plan: &Plan,
    client: SocketAddr,
) -> Result<Tunnel, Failure> {
    // The peer believes only the address that the tunnel comes from, which is of the peer's family.
    let own = plan.source.addresses.iter().find(|address| address.is_ipv4() == plan.peer.is_ipv4());
    let request = ConnectRequest {
        forwarded: own.map(|address| SocketAddr::new(*address, client.port())),
        ..ConnectRequest::to(plan.authority)
    };
    open(pool, workload, plan, request).await
}

/// The client for which a waypoint opens a tunnel.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedClient<'a> {
    /// What its certificate proved to the waypoint.
    pub identity: &'a Identity,
    /// Where it connected from.
    pub address: SocketAddr,
}

/// Opens a tunnel for a client that this proxy, a waypoint, has verified.
pub async fn tunnel_for<W: Served>(
    pool: &Pool<Dialer<W>>,
    workload: &LocalWorkload,
    plan: &Plan,
    client: VerifiedClient<'_>,
) -> Result<Tunnel, Failure> {
    let request = ConnectRequest {
        forwarded: Some(client.address),
        client: Some(client.identity.clone()),
        ..ConnectRequest::to(plan.authority)
    };
    open(pool, workload, plan, request).await
}

async fn open<W: Served>(
    pool: &Pool<Dialer<W>>,
    workload: &LocalWorkload,
    plan: &Plan,
    request: ConnectRequest,
) -> Result<Tunnel, Failure> {
    // A pooled connection may outlive the certificate it was made with; without a valid certificate now there
    // is no new tunnel on it.
    workload.certificate().await.map_err(|error| {
        failure(Reason::CertificateMissing, format!("failed to get a certificate: {error}"), false)
    })?;
    let key = Key {
        source: workload.uid.clone(),
        identity: plan.source.identity(),
        peers: plan.identities.as_slice().into(),
        address: plan.peer,
    };
    let request = ConnectRequest { baggage: Some(baggage(&plan.source)), ..request };
    pool.open(&key, &request).await.map_err(|error| pool_failure(&error))
}

/// Connects to the application that the permit names, which will see `client` as its peer.
///
/// ```
/// # use std::net::SocketAddr;
/// # use ambit_core::policy::Permit;
/// # use ambit_proxy::{dial, workload::Served};
/// async fn permitted<W: Served>(served: &W, permit: &Permit, client: SocketAddr) {
///     let _ = dial::application(served, permit, client).await;
/// }
/// ```
///
/// What policy did not permit does not compile: neither an address in the permit's place, nor a permit that
/// `policy::authorize` did not make.
///
/// ```compile_fail,E0308
/// # use std::net::SocketAddr;
/// # use ambit_proxy::{dial, workload::Served};
/// async fn unpermitted<W: Served>(served: &W, address: &SocketAddr, client: SocketAddr) {
///     let _ = dial::application(served, address, client).await;
/// }
/// ```
///
/// ```compile_fail,E0451
/// # use std::{net::SocketAddr, sync::Arc};
/// # use ambit_core::{model::Workload, policy::Permit};
/// fn forged(workload: Arc<Workload>, address: SocketAddr) -> Permit {
///     Permit { workload, address, policy: None, depends_on_source: false }
/// }
/// ```
pub async fn application<W: Served>(
    served: &W,
    permit: &Permit,
    client: SocketAddr,
) -> Result<TcpStream, Failure> {
    connect_application(served, permit.address(), client).await
}

/// Connects a workload's application to itself, or to another of the same workload: `Plan::Local`. Like
/// loopback, it never leaves the workload, so no policy is evaluated.
pub async fn itself<W: Served>(served: &W, plan: &Local, client: SocketAddr) -> Result<TcpStream, Failure> {
    connect_application(served, plan.address, client).await
}

async fn connect_application<W: Served>(
    served: &W,
    address: SocketAddr,
    client: SocketAddr,
) -> Result<TcpStream, Failure> {
    let socket =
        served.application_socket(address, client).map_err(|error| socket_failure(address, &error))?;
    socket.connect(address).await.map_err(|error| connect_failure(address, &error))
}

/// Connects to something outside the mesh as the workload's application would.
pub async fn plain<W: Served>(
    served: &W,
    address: SocketAddr,
    limit: Duration,
) -> Result<TcpStream, Failure> {
    let socket = served.network_socket(address).map_err(|error| socket_failure(address, &error))?;
    match tokio::time::timeout(limit, socket.connect(address)).await {
        Ok(connected) => connected.map_err(|error| connect_failure(address, &error)),
        Err(_) => Err(too_slow(address, limit)),
    }
}

/// The addresses of a name, those of the wanted family first. The process asks its own resolver.
pub async fn resolve(name: &str, wanted: SocketAddr) -> Result<Vec<IpAddr>, Failure> {
    let found = tokio::net::lookup_host((name, wanted.port())).await;
    let found = found.map_err(|error| unresolved(name, &error.to_string()))?;
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
    addresses.sort_by_key(|address| address.is_ipv4() != wanted.is_ipv4());
    addresses.dedup();
    Ok(addresses)
}

/// A name without a usable address; another endpoint's may have one.
pub fn unresolved(name: &str, why: &str) -> Failure {
    failure(Reason::ConnectFailed, format!("failed to resolve {name}: {why}"), true)
}

/// An endpoint that did not answer in its share of the time.
pub fn too_slow(address: SocketAddr, limit: Duration) -> Failure {
    let error = format!("{address} did not answer within {limit:?}");
    failure(Reason::ConnectTimeout, error, true)
}

fn failure(reason: Reason, error: String, elsewhere: bool) -> Failure {
    Failure { ending: ending::unmade(reason, error), elsewhere }
}

fn connect_failure(address: SocketAddr, error: &io::Error) -> Failure {
    failure(Reason::ConnectFailed, format!("failed to connect to {address}: {error}"), true)
}

fn socket_failure(address: SocketAddr, error: &SocketError) -> Failure {
    match error {
        SocketError::Create(error) => connect_failure(address, error),
        SocketError::Mark(_) => failure(Reason::ConnectFailed, chain(error), false),
    }
}

fn pool_failure(error: &PoolError<DialError>) -> Failure {
    use ambit_hbone::Error as Hbone;
    let (reason, elsewhere) = match error {
        PoolError::Dial { source, .. } => match &**source {
            DialError::WorkloadGone | DialError::Socket(SocketError::Mark(_)) => {
                (Reason::ConnectFailed, false)
            }
            DialError::Certificate(_) => (Reason::CertificateMissing, false),
            DialError::Socket(SocketError::Create(_)) | DialError::Connect(_) => {
                (Reason::ConnectFailed, true)
            }
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
    failure(reason, chain(error), elsewhere)
}

/// What the source says of itself, for the peer's telemetry.
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
