//! A workload that this proxy serves: its identity, its certificate and its limits ([`LocalWorkload`]), where
//! its sockets come from ([`Served`]), and all of them ([`Workloads`]).

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ambit_certificates::{Certificates, Lease};
use ambit_core::chain;
use ambit_core::model::{Identity, TrustDomain, WorkloadUid};
use ambit_hbone::server::Clients;
use ambit_hbone::tls::{self, WorkloadCertificate};
use arc_swap::ArcSwapOption;
use parking_lot::RwLock;
use rustls::ServerConfig;
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;

use crate::shares::Share;
use crate::socket::{self, Family, PeerLocation};
use crate::state::CONFIGURATION_TIMEOUT;

/// What the proxy holds for a workload that it serves.
pub struct LocalWorkload {
    /// Its name in the mesh.
    pub uid: WorkloadUid,
    /// Set when the mesh says what its identity is.
    lease: RwLock<Option<Arc<Lease>>>,
    /// Made once for each certificate and the trust domains that it accepts.
    server_config: ArcSwapOption<Terminator>,
    /// HBONE connections of its peers.
    pub clients: Clients,
    /// Descriptors that its connections hold.
    pub share: Share,
    /// Cancelled when the workload leaves the proxy: nothing new is accepted for it.
    pub released: CancellationToken,
}

/// What a TLS configuration was made from, and the configuration.
struct Terminator {
    certificate: Arc<WorkloadCertificate>,
    aliases: Arc<[TrustDomain]>,
    config: Arc<ServerConfig>,
}

impl LocalWorkload {
    /// One without an identity yet.
    pub fn new(uid: WorkloadUid) -> Self {
        Self {
            uid,
            lease: RwLock::default(),
            server_config: ArcSwapOption::empty(),
            clients: Clients::default(),
            share: Share::default(),
            released: CancellationToken::new(),
        }
    }

    /// Follows the identity that the workload has in the mesh; true when it had another before.
    pub fn identify(&self, identity: Option<&Identity>, certificates: &Certificates) -> bool {
        let mut lease = self.lease.write();
        if lease.as_ref().map(|lease| lease.identity()) == identity {
            return false;
        }
        let changed = lease.is_some();
        *lease = identity.map(|identity| Arc::new(certificates.keep(identity)));
        changed
    }

    /// The lease on its identity's certificate, if the workload is known.
    pub fn lease(&self) -> Option<Arc<Lease>> {
        self.lease.read().clone()
    }

    /// The TLS configuration that terminates tunnels to the workload: the certificate in force, for peers of
    /// its trust domain and of its aliases.
    pub async fn server_config(&self, aliases: Arc<[TrustDomain]>) -> Result<Arc<ServerConfig>, String> {
        let certificate = self.certificate().await?;
        if let Some(made) = &*self.server_config.load()
            && Arc::ptr_eq(&made.certificate, &certificate)
            && made.aliases == aliases
        {
            return Ok(made.config.clone());
        }
        let config = tls::server_config_with_aliases(&certificate, &aliases);
        let made = Terminator { certificate, aliases, config: config.clone() };
        self.server_config.store(Some(Arc::new(made)));
        Ok(config)
    }

    /// The certificate, waited for if it is being fetched.
    pub async fn certificate(&self) -> Result<Arc<WorkloadCertificate>, String> {
        let lease = self.lease().ok_or_else(|| format!("{} has no identity yet", self.uid))?;
        if let Some(certificate) = lease.current() {
            return Ok(certificate);
        }
        match tokio::time::timeout(CONFIGURATION_TIMEOUT, lease.get()).await {
            Ok(Ok(certificate)) => Ok(certificate),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("no certificate for {} in time", lease.identity())),
        }
    }
}

impl fmt::Debug for LocalWorkload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalWorkload").field(&self.uid).finish()
    }
}

/// A served workload and where the sockets of its connections come from.
pub trait Served: Send + Sync + 'static {
    /// The workload.
    fn workload(&self) -> &LocalWorkload;

    /// A socket to connect to the workload's own application at `address`, which is to see `client` as its
    /// peer.
    fn application_socket(&self, address: SocketAddr, client: SocketAddr) -> Result<TcpSocket, SocketError>;

    /// A socket to connect from the workload to `address`, possibly on another node.
    fn network_socket(&self, address: SocketAddr) -> Result<TcpSocket, SocketError>;
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The operating system gives none.
    #[error("failed to create the socket")]
    Create(#[source] io::Error),
    /// It could not be prepared for the kernel's programs.
    #[error("failed to mark the socket")]
    Mark(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A workload whose sockets are the process's own: a proxy that is no node daemon. Applications see the
/// proxy as their peer.
#[derive(Debug)]
pub struct HostWorkload {
    /// The workload.
    pub workload: LocalWorkload,
    /// The address its connections come from; the system chooses one if there is none.
    pub address: Option<std::net::IpAddr>,
}

impl Served for HostWorkload {
    fn workload(&self) -> &LocalWorkload {
        &self.workload
    }

    fn application_socket(&self, address: SocketAddr, _: SocketAddr) -> Result<TcpSocket, SocketError> {
        socket::connecting(Family::of(address), PeerLocation::Local).map_err(SocketError::Create)
    }

    fn network_socket(&self, address: SocketAddr) -> Result<TcpSocket, SocketError> {
        let make = || {
            let socket = socket::connecting(Family::of(address), PeerLocation::Remote)?;
            if let Some(own) = self.address {
                socket.bind(SocketAddr::new(own, 0))?;
            }
            Ok(socket)
        };
        make().map_err(SocketError::Create)
    }
}

/// The workloads that this proxy serves.
#[derive(Debug)]
pub struct Workloads<W>(RwLock<BTreeMap<WorkloadUid, Arc<W>>>);

impl<W> Default for Workloads<W> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<W: Served> Workloads<W> {
    /// The workload, if it is served.
    pub fn get(&self, uid: &WorkloadUid) -> Option<Arc<W>> {
        self.0.read().get(uid).cloned()
    }

    /// Serves one more.
    pub fn insert(&self, served: Arc<W>) {
        self.0.write().insert(served.workload().uid.clone(), served);
    }

    /// Serves it no longer.
    pub fn remove(&self, uid: &WorkloadUid) -> Option<Arc<W>> {
        self.0.write().remove(uid)
    }

    /// All of them, ordered by their names.
    pub fn all(&self) -> Vec<Arc<W>> {
        self.0.read().values().cloned().collect()
    }
}
