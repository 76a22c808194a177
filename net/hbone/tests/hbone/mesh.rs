//! A mesh of two: a client's proxy and a server's, and applications' connections through them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ambit_core::model::{Identity, WorkloadUid};
use ambit_hbone::client::{self, Connection};
use ambit_hbone::memory::Account;
use ambit_hbone::pool::{Dial, Key, Pool, PoolError};
use ambit_hbone::relay::{self, Outcome, Traffic};
use ambit_hbone::request::{Authority, ConnectRequest};
use ambit_hbone::server::{Clients, Incoming, Server, Settings};
use ambit_hbone::tls::{self, WorkloadCertificate};
use ambit_hbone::{Error, Http2, Tunnel};
use futures::future::BoxFuture;
use http::StatusCode;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::ca::Ca;

pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(crate) const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// Longer than anything takes; what takes longer has failed.
pub(crate) const DEADLINE: Duration = Duration::from_mins(3);

/// Waits for what must come.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("what must come, in time")
}

/// Waits for a state.
pub(crate) async fn until(what: &str, state: impl Fn() -> bool) {
    let waiting = async {
        while !state() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("{what}: not in time"));
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

/// Makes connections with one certificate, and counts them.
pub(crate) struct Dialer {
    pub(crate) certificate: WorkloadCertificate,
    pub(crate) http2: Http2,
    pub(crate) dials: Arc<AtomicUsize>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("connecting")]
    Connect(#[from] io::Error),
    #[error("handshake")]
    Hbone(#[from] Error),
}

impl Dial for Dialer {
    type Error = DialError;

    async fn dial(&self, key: &Key) -> Result<Connection, DialError> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let socket = TcpStream::connect(key.address).await?;
        let config = tls::client_config(&self.certificate, &key.peers);
        Ok(client::connect(socket, config, &self.http2, &Account::default()).await?)
    }
}

pub(crate) type Opened = Result<Tunnel, PoolError<DialError>>;

/// Where a proxy says how its relays ended.
pub(crate) type Results = mpsc::UnboundedSender<Outcome>;

/// Carries bytes between a client's socket and its tunnel.
pub(crate) type Relay = fn(TcpStream, Tunnel) -> BoxFuture<'static, Outcome>;

/// A server's proxy, behind an address, and what it was asked.
pub(crate) struct Inbound {
    pub(crate) address: SocketAddr,
    drain: watch::Sender<bool>,
    pub(crate) ended: mpsc::UnboundedReceiver<Result<(), Error>>,
    pub(crate) outcomes: mpsc::UnboundedReceiver<Outcome>,
    pub(crate) connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Inbound {
    /// Forwards tunnels to the address they ask for; port 1 is refused.
    pub(crate) async fn start(certificate: &WorkloadCertificate, settings: Settings) -> Self {
        Self::serving(certificate, settings, |incoming, results| Box::pin(forward(incoming, results))).await
    }

    /// Gives each request to `handle`.
    pub(crate) async fn serving(
        certificate: &WorkloadCertificate,
        settings: Settings,
        handle: impl Fn(Incoming, Results) -> BoxFuture<'static, ()> + Clone + Send + Sync + 'static,
    ) -> Self {
        let (listener, address) = listen().await;
        let (drain, draining) = watch::channel(false);
        let (ends, ended) = mpsc::unbounded_channel();
        let (results, outcomes) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let (server, config) = (Server::new(settings), tls::server_config(certificate));
        let clients = Clients::default();
        let count = connections.clone();
        let task = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.expect("a connection");
                count.fetch_add(1, Ordering::SeqCst);
                let (server, config, ends) = (server.clone(), config.clone(), ends.clone());
                let handle = handle.clone();
                let clients = clients.clone();
                let (mut draining, results) = (draining.clone(), results.clone());
                serving.spawn(async move {
                    let drain = async {
                        let _gone = draining.wait_for(|draining| *draining).await;
                    };
                    let end = server
                        .serve(&clients, socket, config, drain, |incoming| handle(incoming, results.clone()))
                        .await;
                    let _unread = ends.send(end);
                });
            }
        });
        Self { address, drain, ended, outcomes, connections, task }
    }

    pub(crate) fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// As if the process had died: every connection is cut.
    pub(crate) fn kill(&self) {
        self.task.abort();
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(incoming: Incoming, results: Results) {
    let Authority::Address(address) = incoming.request.authority else {
        return incoming.responder.refuse(StatusCode::BAD_REQUEST);
    };
    if address.port() == 1 {
        return incoming.responder.refuse(StatusCode::UNAUTHORIZED);
    }
    let Ok(application) = TcpStream::connect(address).await else {
        return incoming.responder.refuse(StatusCode::SERVICE_UNAVAILABLE);
    };
    let Ok(tunnel) = incoming.responder.accept() else { return };
    let _unread = results.send(relay::tunnel(application, tunnel, &Traffic::default()).await);
}

/// Both proxies.
pub(crate) struct Mesh {
    pub(crate) inbound: Inbound,
    pub(crate) pool: Pool<Dialer>,
    pub(crate) dials: Arc<AtomicUsize>,
    pub(crate) key: Key,
}

pub(crate) fn uid(name: &str) -> WorkloadUid {
    WorkloadUid(format!("Kubernetes//Pod/shop/{name}").into())
}

pub(crate) fn identity(text: &str) -> Identity {
    text.parse().expect("an identity")
}

pub(crate) fn key(address: SocketAddr) -> Key {
    Key { source: uid("web"), identity: identity(CLIENT), peers: [identity(SERVER)].into(), address }
}

pub(crate) fn pool(ca: &Ca, http2: Http2, dial_timeout: Duration) -> (Pool<Dialer>, Arc<AtomicUsize>) {
    let dials = Arc::new(AtomicUsize::new(0));
    let dialer = Dialer { certificate: ca.good(CLIENT), http2, dials: dials.clone() };
    (Pool::new(dialer, dial_timeout), dials)
}

impl Mesh {
    pub(crate) async fn start() -> Self {
        Self::with(Http2::default()).await
    }

    pub(crate) async fn with(http2: Http2) -> Self {
        Self::with_both(http2.clone(), http2).await
    }

    pub(crate) async fn with_both(client: Http2, server: Http2) -> Self {
        let ca = Ca::new();
        let settings = Settings { http2: server, ..Settings::default() };
        let inbound = Inbound::start(&ca.good(SERVER), settings).await;
        let (pool, dials) = pool(&ca, client, DEADLINE);
        let key = key(inbound.address);
        Self { inbound, pool, dials, key }
    }

    /// With a waypoint between the client's proxy and the server's, which relays tunnels as they are.
    pub(crate) async fn with_waypoint() -> Self {
        let ca = Ca::new();
        let inbound = Inbound::start(&ca.good(SERVER), Settings::default()).await;
        let (onward, _) = pool(&ca, Http2::default(), DEADLINE);
        let onward_key = key(inbound.address);
        let behind = Arc::new(inbound);
        let certificate = ca.good(SERVER);
        let waypoint = Inbound::serving(&certificate, Settings::default(), move |incoming, results| {
            let (onward, key, behind) = (onward.clone(), onward_key.clone(), behind.clone());
            Box::pin(async move {
                let Authority::Address(address) = incoming.request.authority else { return };
                let Ok(second) = onward.open(&key, &ConnectRequest::to(address)).await else { return };
                let Ok(first) = incoming.responder.accept() else { return };
                let _unread = results.send(relay::streams(first, second, &Traffic::default()).await);
                drop(behind);
            })
        });
        let inbound = waypoint.await;
        let (pool, dials) = pool(&ca, Http2::default(), DEADLINE);
        let key = key(inbound.address);
        Self { inbound, pool, dials, key }
    }

    pub(crate) async fn open(&self, to: SocketAddr) -> Opened {
        self.pool.open(&self.key, &ConnectRequest::to(to)).await
    }

    /// Two applications with a tunnel between them: the client's socket, the server's, and the client's
    /// relay.
    pub(crate) async fn pair(&self) -> (TcpStream, TcpStream, JoinHandle<Outcome>) {
        let relay = |near, tunnel| -> BoxFuture<_> {
            Box::pin(async move { relay::tunnel(near, tunnel, &Traffic::default()).await })
        };
        self.pair_by(relay).await
    }

    /// The same with another relay at the client's side.
    pub(crate) async fn pair_by(&self, relay: Relay) -> (TcpStream, TcpStream, JoinHandle<Outcome>) {
        let (application, address) = listen().await;
        let tunnel = soon(self.open(address)).await.expect("a tunnel");
        let (server, _) = application.accept().await.expect("the tunnel's connection");
        let (client, near) = tcp_pair().await;
        (client, server, tokio::spawn(relay(near, tunnel)))
    }
}

/// Two ends of one TCP connection.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let (listener, address) = listen().await;
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.expect("a connection"), server.expect("the same").0)
}
