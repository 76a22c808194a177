//! The enrolled pods of this node: their namespaces and their listeners.
//!
//! Entry points: [`Pods`] and [`Pod::listen`].

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock, Weak};

use ambit_core::model::WorkloadUid;
use ambit_diag::Diag;
use ambit_enrol::NetworkNamespace;
use ambit_loader::{Dataplane, NetnsCookie, WorkloadNumber};
use ambit_proxy::socket::{self, Family, PeerLocation};
use ambit_proxy::workload::{LocalWorkload, Served, SocketError, Workloads};
use parking_lot::Mutex;
use socket2::Socket;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::interfaces::{self, Change, Interfaces};
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
    interfaces: Interfaces,
    /// Cookies of the sockets that were open when it was enrolled.
    older: OnceLock<HashSet<u64>>,
    /// What accepts for it, while it does.
    accepting: Mutex<Option<Accepting>>,
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
        let (cookie, interfaces) = within(&namespace, || {
            let probe = socket::connecting(Family::V4, PeerLocation::Local)?;
            Ok((ambit_loader::netns_cookie(probe.as_fd())?, Interfaces::watch()?))
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
            interfaces,
            older: OnceLock::new(),
            accepting: Mutex::default(),
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

    /// Its interfaces.
    pub(crate) fn interfaces(&self) -> &Interfaces {
        &self.interfaces
    }

    /// What it has lost of the addresses that it had when it was enrolled.
    pub(crate) fn lost_addresses(&self) -> io::Result<Change> {
        let has = within(&self.namespace, interfaces::addresses)?;
        Ok(interfaces::compare(self.interfaces.addresses(), &has))
    }

    /// The sockets that were open when it was enrolled, by their cookies.
    pub(crate) fn set_older(&self, cookies: HashSet<u64>) {
        self.older.get_or_init(|| cookies);
    }

    /// Whether a socket was open when it was enrolled. Where that is not known, every one may have been.
    pub(crate) fn is_older(&self, cookie: u64) -> bool {
        self.older.get().is_none_or(|older| older.contains(&cookie))
    }

    /// What accepts for it from now on; what did before ends.
    pub(crate) fn set_accepting(&self, accepting: Accepting) {
        if let Some(before) = self.accepting.lock().replace(accepting) {
            before.stop.cancel();
        }
    }

    /// Its listeners, while all of them are open in this daemon.
    pub(crate) fn listening(&self) -> Option<Listening> {
        let accepting = self.accepting.lock();
        let listeners = accepting.as_ref()?.listeners.iter();
        listeners.map(|(role, family, listener)| Some((*role, *family, listener.upgrade()?))).collect()
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

/// A pod's listeners, held open.
pub(crate) type Listening = Vec<(Role, Family, Arc<TcpListener>)>;

/// The tasks that accept for a pod.
pub(crate) struct Accepting {
    /// Their listeners, which close when the tasks end.
    pub(crate) listeners: Vec<(Role, Family, Weak<TcpListener>)>,
    /// Ends them.
    pub(crate) stop: CancellationToken,
}

/// As the kernel's side wants to know them.
pub(crate) fn borrowed(listening: &Listening) -> ambit_loader::Listeners<'_> {
    let of = |role: Role, family: Family| {
        let found = listening.iter().find(|(its, of, _)| (*its, *of) == (role, family));
        found.map(|(_, _, listener)| listener.as_fd())
    };
    ambit_loader::Listeners {
        outbound_v4: of(Role::Outbound, Family::V4),
        outbound_v6: of(Role::Outbound, Family::V6),
        hbone_v4: of(Role::Hbone, Family::V4),
        hbone_v6: of(Role::Hbone, Family::V6),
        plaintext_v4: of(Role::Plaintext, Family::V4),
        plaintext_v6: of(Role::Plaintext, Family::V6),
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
            outbound_v4: Some(self.v4.outbound.as_fd()),
            outbound_v6: of_v6(|listener| &listener.outbound),
            hbone_v4: Some(self.v4.hbone.as_fd()),
            hbone_v6: of_v6(|listener| &listener.hbone),
            plaintext_v4: Some(self.v4.plaintext.as_fd()),
            plaintext_v6: of_v6(|listener| &listener.plaintext),
        }
    }

    /// All of them, with what they are for.
    pub(crate) fn into_sockets(self) -> impl Iterator<Item = (Role, Family, Socket)> {
        let sockets = |(family, listener): (Family, Listener)| {
            [
                (Role::Outbound, family, listener.outbound),
                (Role::Hbone, family, listener.hbone),
                (Role::Plaintext, family, listener.plaintext),
            ]
        };
        let v6 = self.v6.map(|listener| (Family::V6, listener));
        [Some((Family::V4, self.v4)), v6].into_iter().flatten().flat_map(sockets)
    }
}
