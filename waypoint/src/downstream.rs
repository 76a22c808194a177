//! One client's tunnel, as everything behind it sees it: [`Downstream`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use ambit_core::fronted::Fronted;
use ambit_core::mesh::Mesh;
use ambit_core::model::{AppProtocol, Identity, Service, Workload};
use ambit_core::route::PortRoutes;
use ambit_hbone::request::ConnectRequest;
use ambit_hbone::server::Peer;
use ambit_proxy::dial::VerifiedClient;
use http::HeaderValue;

use crate::report::Cache;
use crate::worker::Worker;

/// Who asks through this tunnel, and for what.
#[derive(Debug)]
pub(crate) struct Downstream {
    pub(crate) worker: Arc<Worker>,
    /// Proven by the client's certificate.
    pub(crate) identity: Arc<Identity>,
    /// The client's own address and port.
    pub(crate) client: SocketAddr,
    /// A name for telemetry, never for decisions: the workload that has the address and the identity.
    pub(crate) source: Option<Arc<Workload>>,
    /// The address that the client dialled.
    pub(crate) dialled: SocketAddr,
    pub(crate) fronted: Fronted,
    /// The `forwarded` header of its requests.
    pub(crate) forwarded: HeaderValue,
    /// The `x-forwarded-client-cert` header of its requests.
    pub(crate) certificate: HeaderValue,
    /// Requests under way.
    requests: AtomicUsize,
    /// Requests so far.
    begun: AtomicU64,
    /// Whether it speaks another protocol than HTTP by now.
    switched: AtomicBool,
    /// Metrics of its last requests.
    pub(crate) series: Cache,
}

impl Downstream {
    pub(crate) fn new(
        worker: Arc<Worker>,
        mesh: &Mesh,
        own: &Workload,
        (peer, request): (&Peer, &ConnectRequest),
        (dialled, fronted): (SocketAddr, Fronted),
    ) -> Self {
        let client = client(request, peer);
        let identity = &peer.identity;
        let source = mesh.workload_by_address(client.ip()).filter(|it| it.identity() == *identity);
        let text =
            |text: String| HeaderValue::try_from(text).expect("addresses and identities are visible ASCII");
        Self {
            worker,
            identity: Arc::new(identity.clone()),
            client,
            source: source.cloned(),
            dialled,
            fronted,
            forwarded: text(format!("for=\"{client}\"")),
            certificate: text(format!("By={};URI={identity}", own.identity())),
            requests: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            switched: AtomicBool::new(false),
            series: Cache::default(),
        }
    }

    /// The service that was dialled, if it is one.
    pub(crate) fn service(&self) -> Option<&Arc<Service>> {
        match &self.fronted {
            Fronted::Service { service, .. } => Some(service),
            Fronted::Workload { .. } => None,
        }
    }

    /// The routes of the dialled port for this client; none where it has none.
    pub(crate) fn routes<'a>(&self, mesh: &'a Mesh) -> Option<&'a PortRoutes> {
        let Fronted::Service { service, port } = &self.fronted else { return None };
        mesh.routes(&service.key)?.at(*port, &self.identity.namespace)
    }

    /// What the dialled port is declared to speak.
    pub(crate) fn declared(&self) -> AppProtocol {
        match &self.fronted {
            Fronted::Service { service, port } => {
                service.port(*port).map_or(AppProtocol::Unknown, |port| port.app_protocol)
            }
            Fronted::Workload { .. } => AppProtocol::Unknown,
        }
    }

    /// The client as destinations are told of it.
    pub(crate) fn verified(&self) -> VerifiedClient<'_> {
        VerifiedClient { identity: &self.identity, address: self.client }
    }

    /// Whether no request is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0
    }

    /// How many requests there were.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether a request has turned the connection into another protocol's.
    pub(crate) fn is_switched(&self) -> bool {
        self.switched.load(Ordering::Relaxed)
    }

    pub(crate) fn switch(&self) {
        self.switched.store(true, Ordering::Relaxed);
    }

    pub(crate) fn request_begins(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn request_ended(&self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The `Forwarded` address, if its IP is the peer's (else a workload could impersonate another), otherwise
/// the peer's own.
fn client(request: &ConnectRequest, peer: &Peer) -> SocketAddr {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let address = canonical(peer.address);
    match request.forwarded.map(canonical) {
        Some(client) if client.ip() == address.ip() && client.port() != 0 => client,
        _ => address,
    }
}
