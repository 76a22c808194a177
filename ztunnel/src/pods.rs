//! The enrolled pods of this node: their namespaces and their listeners.
//!
//! Entry points: [`Pods`] and [`Pod::listen`].

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use ambit_core::model::WorkloadUid;
use ambit_diag::Diag;
use ambit_enrol::NetworkNamespace;
use ambit_loader::{Dataplane, NetnsCookie, WorkloadNumber};
use ambit_proxy::socket::{self, Family, PeerLocation};
use ambit_proxy::workload::{LocalWorkload, Served, SocketError, Workloads};
use parking_lot::Mutex;
use socket2::Socket;
use tokio::net::TcpSocket;

use crate::error::Error;
use crate::netns::within;

/// All enrolled pods of this node that have listeners.
pub(crate) type Pods = Workloads<Pod>;

/// One enrolled pod.
pub(crate) struct Pod {
    /// What a proxy holds for it.
    pub(crate) workload: LocalWorkload,
    pub(crate) cookie: NetnsCookie,
    /// Of this enrolment, once there is one.
    number: OnceLock<WorkloadNumber>,
    namespace: NetworkNamespace,
    /// Opened when it is first needed.
    diag: Mutex<Option<Diag>>,
    /// Marks its sockets.
    dataplane: Arc<Dataplane>,
}

impl Pod {
    /// Takes the namespace's descriptor.
    pub(crate) fn new(
        uid: &str,
        namespace: NetworkNamespace,
        dataplane: Arc<Dataplane>,
    ) -> Result<Self, Error> {
        let uid = WorkloadUid(uid.into());
        let cookie = within(&namespace, || {
            let probe = socket::connecting(Family::V4, PeerLocation::Local)?;
            ambit_loader::netns_cookie(probe.as_fd())
        })
        .map_err(|source| Error::Socket {
            socket: "first socket",
            workload: uid.to_string(),
            source,
        })?;
        Ok(Self {
            workload: LocalWorkload::new(uid),
            cookie,
            number: OnceLock::new(),
            namespace,
            diag: Mutex::default(),
            dataplane,
        })
    }

    /// Its network namespace.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// This enrolment's number in the kernel's maps.
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
        // After an error there may be unread answers left in it: the next question gets a new one.
        let answer = ask(&mut diag)?;
        *held = Some(diag);
        Ok(answer)
    }

    /// Listeners in the pod's namespace. Those of IPv6 are absent where the pod has none.
    pub(crate) fn listen(&self) -> Result<Listeners, Error> {
        let workload = &self.workload.uid;
        let failed = |socket| move |source| Error::Socket { socket, workload: workload.to_string(), source };
        let open = |family, name| within(&self.namespace, || Listener::open(family)).map_err(failed(name));
        let v4 = open(Family::V4, "listeners for IPv4")?;
        let v6 = if self.has_ipv6() { Some(open(Family::V6, "listeners for IPv6")?) } else { None };
        Ok(Listeners { v4, v6 })
    }

    fn has_ipv6(&self) -> bool {
        let bind = || socket::listen(Family::V6, PeerLocation::Local).map(drop);
        within(&self.namespace, bind).is_ok()
    }

    /// A socket in the pod's namespace, to connect with.
    fn connecting(&self, destination: SocketAddr, peer: PeerLocation) -> Result<TcpSocket, SocketError> {
        within(&self.namespace, || socket::connecting(Family::of(destination), peer))
            .map_err(SocketError::Create)
    }
}

impl Served for Pod {
    fn workload(&self) -> &LocalWorkload {
        &self.workload
    }

    fn application_socket(&self, address: SocketAddr, client: SocketAddr) -> Result<TcpSocket, SocketError> {
        let socket = self.connecting(address, PeerLocation::Local)?;
        let marked = self.dataplane.mark_inbound(socket.as_fd(), client);
        marked.map_err(|error| SocketError::Mark(Box::new(error)))?;
        Ok(socket)
    }

    fn network_socket(&self, address: SocketAddr) -> Result<TcpSocket, SocketError> {
        let socket = self.connecting(address, PeerLocation::Remote)?;
        let marked = self.dataplane.mark_outbound(socket.as_fd());
        marked.map_err(|error| SocketError::Mark(Box::new(error)))?;
        Ok(socket)
    }
}

/// What a pod's listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Connections of the pod's applications, captured in `connect()`.
    Outbound,
    /// HBONE connections of peers.
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
    fn open(family: Family) -> io::Result<Self> {
        let listen = |peer| socket::listen(family, peer);
        Ok(Self {
            outbound: listen(PeerLocation::Local)?,
            hbone: listen(PeerLocation::Remote)?,
            plaintext: listen(PeerLocation::Remote)?,
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
