//! The enrolled pods of this node: their namespaces, their listeners, their certificates.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use ambit_certificates::{Certificates, Lease};
use ambit_core::model::{Identity, TrustDomain, WorkloadUid};
use ambit_diag::Diag;
use ambit_enrol::NetworkNamespace;
use ambit_hbone::server::Clients;
use ambit_hbone::tls::{self, WorkloadCertificate};
use ambit_loader::{NetnsCookie, WorkloadNumber};
use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use socket2::Socket;
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::netns::within;
use crate::shares::Share;
use crate::socket::{self, Family, Peer};

/// One enrolled pod.
pub(crate) struct Pod {
    pub(crate) uid: WorkloadUid,
    pub(crate) cookie: NetnsCookie,
    /// Of this enrolment, once there is one.
    number: OnceLock<WorkloadNumber>,
    namespace: NetworkNamespace,
    /// Set when the pod's workload is known.
    lease: RwLock<Option<Arc<Lease>>>,
    /// Made once for each certificate and what it accepts.
    server_config: ArcSwapOption<Terminator>,
    /// Made when it is first needed.
    diag: Mutex<Option<Diag>>,
    /// Connections with tunnels to it.
    pub(crate) clients: Clients,
    /// What its connections hold of the daemon.
    pub(crate) share: Share,
    /// Cancelled when the pod is released: nothing new is accepted for it.
    pub(crate) released: CancellationToken,
}

impl Pod {
    /// Takes the namespace's descriptor.
    pub(crate) fn new(uid: &str, namespace: NetworkNamespace) -> Result<Self, Error> {
        let uid = WorkloadUid(uid.into());
        let cookie = within(&namespace, || {
            let probe = socket::connecting(Family::V4, Peer::Local)?;
            ambit_loader::netns_cookie(probe.as_fd())
        })
        .map_err(|source| Error::Socket {
            socket: "first socket",
            workload: uid.to_string(),
            source,
        })?;
        Ok(Self {
            uid,
            cookie,
            number: OnceLock::new(),
            namespace,
            diag: Mutex::default(),
            lease: RwLock::default(),
            server_config: ArcSwapOption::empty(),
            clients: Clients::default(),
            share: Share::default(),
            released: CancellationToken::new(),
        })
    }

    /// Its network namespace.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// How the kernel's maps call this enrolment.
    pub(crate) fn number(&self) -> Option<WorkloadNumber> {
        self.number.get().copied()
    }

    /// The kernel has given the enrolment its number.
    pub(crate) fn numbered(&self, number: WorkloadNumber) {
        self.number.get_or_init(|| number);
    }

    /// Asks the kernel about the sockets in the pod's namespace.
    pub(crate) fn with_diag<T>(
        &self,
        ask: impl FnOnce(&mut Diag) -> Result<T, ambit_diag::Error>,
    ) -> Result<T, ambit_diag::Error> {
        let mut held = self.diag.lock();
        let mut diag = match held.take() {
            Some(diag) => diag,
            None => within(&self.namespace, || Ok(Diag::open())).map_err(ambit_diag::Error::Open)??,
        };
        // After an error there may be answers left in it that nobody waits for: the next question gets a new
        // one.
        let answer = ask(&mut diag)?;
        *held = Some(diag);
        Ok(answer)
    }

    /// A socket in the pod's namespace, to connect with.
    pub(crate) fn connecting(&self, destination: SocketAddr, peer: Peer) -> io::Result<TcpSocket> {
        within(&self.namespace, || socket::connecting(Family::of(destination), peer))
    }

    /// Listeners in the pod's namespace. Those of IPv6 are absent where the pod has none.
    pub(crate) fn listen(&self) -> Result<Listeners, Error> {
        let failed = |socket| move |source| Error::Socket { socket, workload: self.uid.to_string(), source };
        let set = |family, name| within(&self.namespace, || Listener::set(family)).map_err(failed(name));
        let v4 = set(Family::V4, "listeners for IPv4")?;
        let v6 = if self.has_ipv6() { Some(set(Family::V6, "listeners for IPv6")?) } else { None };
        Ok(Listeners { v4, v6 })
    }

    fn has_ipv6(&self) -> bool {
        let bind = || socket::listen(Family::V6, Peer::Local).map(drop);
        within(&self.namespace, bind).is_ok()
    }

    /// Follows the identity the pod's workload has now; true when it is another than before.
    pub(crate) fn identify(&self, identity: Option<&Identity>, certificates: &Certificates) -> bool {
        let mut lease = self.lease.write();
        if lease.as_ref().map(|lease| lease.identity()) == identity {
            return false;
        }
        let changed = lease.is_some();
        *lease = identity.map(|identity| Arc::new(certificates.keep(identity)));
        changed
    }

    /// The pod's identity's certificate, if the pod is known.
    pub(crate) fn lease(&self) -> Option<Arc<Lease>> {
        self.lease.read().clone()
    }

    /// How tunnels to the pod are terminated: with the certificate in force, for peers of its trust domain
    /// and of these that are as good.
    pub(crate) async fn server_config(
        &self,
        aliases: Arc<[TrustDomain]>,
    ) -> Result<Arc<ServerConfig>, String> {
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
    pub(crate) async fn certificate(&self) -> Result<Arc<WorkloadCertificate>, String> {
        let lease = self.lease().ok_or_else(|| format!("{} has no identity yet", self.uid))?;
        if let Some(certificate) = lease.current() {
            return Ok(certificate);
        }
        let fetched = tokio::time::timeout(crate::state::PATIENCE, lease.get()).await;
        match fetched {
            Ok(Ok(certificate)) => Ok(certificate),
            Ok(Err(error)) => Err(crate::report::chain(&error)),
            Err(_) => Err(format!("no certificate for {} in time", lease.identity())),
        }
    }
}

/// What a configuration for accepting tunnels was made from, and the configuration.
struct Terminator {
    certificate: Arc<WorkloadCertificate>,
    aliases: Arc<[TrustDomain]>,
    config: Arc<ServerConfig>,
}

/// What a pod's listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Connections of the pod's applications, captured in `connect()`.
    Outbound,
    /// Tunnels from peers.
    Hbone,
    /// Plaintext that must be checked.
    Plaintext,
}

impl Role {
    /// Its name in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Hbone => "hbone",
            Self::Plaintext => "plaintext",
        }
    }
}

/// A pod's listeners of one family.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) outbound: Socket,
    pub(crate) hbone: Socket,
    pub(crate) plaintext: Socket,
}

impl Listener {
    fn set(family: Family) -> io::Result<Self> {
        let listen = |peer| socket::listen(family, peer);
        Ok(Self {
            outbound: listen(Peer::Local)?,
            hbone: listen(Peer::Remote)?,
            plaintext: listen(Peer::Remote)?,
        })
    }

    fn outbound_port(&self) -> Option<u16> {
        self.outbound.local_addr().ok()?.as_socket().map(|address| address.port())
    }
}

/// A pod's listeners.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) v4: Listener,
    pub(crate) v6: Option<Listener>,
}

impl Listeners {
    /// As the kernel's side wants to know them.
    pub(crate) fn borrow(&self) -> ambit_loader::Listeners<'_> {
        let of_v6 = |socket: fn(&Listener) -> &Socket| -> Option<BorrowedFd<'_>> {
            self.v6.as_ref().map(|v6| socket(v6).as_fd())
        };
        ambit_loader::Listeners {
            outbound_v4: self.v4.outbound_port(),
            outbound_v6: self.v6.as_ref().and_then(Listener::outbound_port),
            hbone_v4: Some(self.v4.hbone.as_fd()),
            hbone_v6: of_v6(|listener| &listener.hbone),
            plaintext_v4: Some(self.v4.plaintext.as_fd()),
            plaintext_v6: of_v6(|listener| &listener.plaintext),
        }
    }

    /// All of them, with what they are for.
    pub(crate) fn into_sockets(self) -> impl Iterator<Item = (Role, Socket)> {
        let sockets = |listener: Listener| {
            [
                (Role::Outbound, listener.outbound),
                (Role::Hbone, listener.hbone),
                (Role::Plaintext, listener.plaintext),
            ]
        };
        [Some(self.v4), self.v6].into_iter().flatten().flat_map(sockets)
    }
}

/// All enrolled pods of this node that have listeners.
#[derive(Default)]
pub(crate) struct Pods(RwLock<BTreeMap<WorkloadUid, Arc<Pod>>>);

impl Pods {
    pub(crate) fn get(&self, uid: &WorkloadUid) -> Option<Arc<Pod>> {
        self.0.read().get(uid).cloned()
    }

    pub(crate) fn insert(&self, pod: Arc<Pod>) {
        self.0.write().insert(pod.uid.clone(), pod);
    }

    pub(crate) fn remove(&self, uid: &WorkloadUid) -> Option<Arc<Pod>> {
        self.0.write().remove(uid)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Pod>> {
        self.0.read().values().cloned().collect()
    }
}
