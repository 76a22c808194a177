//! A controller with a certificate, a daemon that keeps a mesh, and a road between them that can be closed.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ambit_core::mesh::{Change, Mesh};
use ambit_core::model::{
    Action, Authorization, Identity, PolicyKey, Scope, TrustDomain, Workload, WorkloadUid,
};
use ambit_core::testing;
use ambit_xds::ca::{Refusal, SignCertificate};
use ambit_xds::client::{self, Connection, Rejected, Status, Update};
use ambit_xds::server::{MAX_AGE, Publisher, Server, tls_config};
use ambit_xds::{Authenticate, Caller, NodeName, Unauthenticated, async_trait};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Long enough for a machine that is busy with other tests.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: did not happen"))
}

pub(crate) fn workload(name: &str, ip: [u8; 4]) -> Workload {
    let ip: IpAddr = ip.into();
    testing::pod(&format!("shop/{name}"), &[&ip.to_string()])
}

pub(crate) fn uid(name: &str) -> WorkloadUid {
    testing::uid(&format!("shop/{name}"))
}

pub(crate) fn put(name: &str, ip: [u8; 4]) -> Change {
    Change::PutWorkload(workload(name, ip).into())
}

pub(crate) fn policy(name: &str, action: Action) -> Change {
    let key = PolicyKey { namespace: "shop".into(), name: name.into() };
    let policy = Authorization { key, scope: Scope::Namespace, action, rules: Vec::new(), dry_run: false };
    Change::PutPolicy(policy.into())
}

/// Who may vouch for controllers.
pub(crate) struct Root {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Root {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("a root") }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    fn server(&self, name: &str) -> Arc<rustls::ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        tls_config(&certificate.pem(), &key.serialize_pem()).expect("a configuration")
    }
}

/// `token-of-<node>` is the token of `<node>`; the daemon of `node-a` has an identity of its own, and
/// `workload-of-<node>` is the token of a workload there.
struct Tokens;

#[async_trait]
impl Authenticate for Tokens {
    async fn node(&self, bearer: &str) -> Result<NodeName, Unauthenticated> {
        if bearer == "token-of-tomorrow" {
            return Err(Unauthenticated::Unavailable("ask again".to_owned()));
        }
        let node = bearer.strip_prefix("token-of-").map(NodeName::new);
        node.ok_or_else(|| Unauthenticated::Refused("the token is not valid".to_owned()))
    }

    async fn caller(&self, bearer: &str) -> Result<Caller, Unauthenticated> {
        let identity = |node: &str, account: &str| Identity {
            trust_domain: TrustDomain::default(),
            namespace: node.into(),
            service_account: account.into(),
        };
        if let Some(node) = bearer.strip_prefix("workload-of-") {
            return Ok(Caller::Workload { node: NodeName::new(node), own: identity(node, "own") });
        }
        let node = self.node(bearer).await?;
        let own = (node.as_str() == "node-a").then(|| identity("node-a", "ztunnel"));
        Ok(Caller::Daemon { node, own })
    }
}

/// The signer waits for it when it is asked to sign `slow`.
pub(crate) static RELEASED: Mutex<Option<mpsc::Receiver<()>>> = Mutex::new(None);

/// A test that blocks the thread which would release it waits for nothing.
fn released() -> bool {
    let receiver = RELEASED.lock().take();
    receiver.is_some_and(|receiver| receiver.recv_timeout(DEADLINE / 2).is_ok())
}

/// Signs for the identity that its node hosts, `spiffe://cluster.local/ns/<node>/sa/default`.
struct Signer;

impl SignCertificate for Signer {
    fn sign(
        &self,
        caller: &Caller,
        named: Option<&Identity>,
        csr: &str,
        ttl: Duration,
    ) -> Result<Vec<String>, Refusal> {
        let (node, identity) = caller.meant(named)?;
        if *identity.namespace != *node.as_str() {
            return Err(Refusal::Denied(format!("{identity} does not run on {node}")));
        }
        match csr {
            "slow" if !released() => Err(Refusal::Unavailable("not released".to_owned())),
            "bad" => Err(Refusal::Invalid("not a CSR".to_owned())),
            "later" => Err(Refusal::Unavailable("no key yet".to_owned())),
            _ => Ok(vec![format!("{csr} for {identity}, {} s", ttl.as_secs()), "root".to_owned()]),
        }
    }
}

/// A controller on loopback.
pub(crate) struct Controller {
    pub(crate) publisher: Publisher,
    pub(crate) mesh: Mesh,
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ambit_xds::Error>>,
}

impl Controller {
    pub(crate) async fn start(root: &Root, changes: Vec<Change>) -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), root, changes).await
    }

    pub(crate) async fn start_at(address: SocketAddr, root: &Root, changes: Vec<Change>) -> Self {
        let mut controller = Self::unread(address, root).await;
        controller.apply(changes);
        controller
    }

    /// One that has not published anything yet.
    pub(crate) async fn unread(address: SocketAddr, root: &Root) -> Self {
        Self::lasting(address, root, MAX_AGE).await
    }

    /// One whose streams last at most for this long.
    pub(crate) async fn lasting(address: SocketAddr, root: &Root, max_age: Duration) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let publisher = Publisher::new();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = Server {
            publisher: publisher.clone(),
            authenticate: Arc::new(Tokens),
            signer: Arc::new(Signer),
            max_age,
        };
        let task = tokio::spawn(server.serve(listener, root.server("ambit-controller"), async {
            let _ = stopped.await;
        }));
        Self { publisher, mesh: Mesh::default(), address, stop, task }
    }

    pub(crate) fn apply(&mut self, changes: Vec<Change>) {
        let touched = self.mesh.apply(changes);
        self.publisher.publish(&self.mesh, &touched);
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).expect("a running controller");
        soon("the controller stops", self.task).await.expect("no panic").expect("no error");
    }

    pub(crate) fn connection(&self, root: &Root, node: &str) -> Connection {
        connection(self.address, root, node)
    }

    /// Waits until the counters say so.
    pub(crate) async fn stats(&self, what: &str, wanted: impl Fn(ambit_xds::server::Stats) -> bool) {
        let reached = async {
            while !wanted(self.publisher.stats()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = tokio::time::timeout(DEADLINE, reached).await;
        assert!(reached.is_ok(), "{what}: {:?}", self.publisher.stats());
    }
}

pub(crate) fn connection(address: SocketAddr, root: &Root, node: &str) -> Connection {
    Connection {
        endpoint: format!("https://{address}"),
        server_name: "ambit-controller".to_owned(),
        root_pem: root.pem(),
        token: format!("token-of-{node}"),
        node: node.to_owned(),
    }
}

/// A daemon that keeps a mesh and counts how many changes reached it.
pub(crate) struct Daemon {
    pub(crate) mesh: watch::Receiver<Mesh>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) changes: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Daemon {
    pub(crate) fn start(connection: Connection) -> Self {
        Self::refusing(connection, |_| Vec::new())
    }

    pub(crate) fn refusing(
        connection: Connection,
        mut refuse: impl FnMut(&Update) -> Vec<Rejected> + Send + 'static,
    ) -> Self {
        let (keep, mesh) = watch::channel(Mesh::default());
        let (tell, status) = watch::channel(Status::default());
        let changes = Arc::new(AtomicUsize::new(0));
        let counted = changes.clone();
        let task = tokio::spawn(async move {
            let on_update = |update: Update| {
                let refused = refuse(&update);
                counted.fetch_add(update.changes.len(), Ordering::Relaxed);
                keep.send_modify(|mesh| drop(mesh.apply(update.changes)));
                refused
            };
            let error = client::run(connection, tell, on_update).await.expect_err("never returns, or fails");
            panic!("{error}");
        });
        Self { mesh, status, changes, task }
    }

    pub(crate) async fn until(&mut self, what: &str, wanted: impl FnMut(&Mesh) -> bool) -> Mesh {
        soon(what, self.mesh.wait_for(wanted)).await.expect("a running daemon").clone()
    }

    pub(crate) async fn status(&mut self, what: &str, wanted: impl FnMut(&Status) -> bool) -> Status {
        soon(what, self.status.wait_for(wanted)).await.expect("a running daemon").clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the road does with what travels on it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    Flows,
    /// Connections stay open and nothing arrives, as when the machine behind is gone.
    Vanishes,
    /// Connections are closed, new ones too.
    Closed,
}

/// A TCP relay to `to`.
pub(crate) struct Road {
    pub(crate) address: SocketAddr,
    pub(crate) traffic: watch::Sender<Traffic>,
}

impl Road {
    pub(crate) async fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (traffic, watched) = watch::channel(Traffic::Flows);
        tokio::spawn(async move {
            let mut relays = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                relays.spawn(relay(near, to, watched.clone()));
            }
        });
        Self { address, traffic }
    }
}

async fn relay(mut near: TcpStream, to: SocketAddr, mut traffic: watch::Receiver<Traffic>) {
    let Ok(mut far) = TcpStream::connect(to).await else { return };
    loop {
        let now = *traffic.borrow_and_update();
        match now {
            Traffic::Closed => return,
            Traffic::Vanishes => {
                if traffic.changed().await.is_err() {
                    return;
                }
            }
            Traffic::Flows => tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                changed = traffic.changed() => if changed.is_err() { return },
            },
        }
    }
}
