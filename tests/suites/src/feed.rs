//! The controller's part played by a test: with the controller's own xDS server and CA, but with each change
//! sent by itself, and the moments known between which a daemon has taken it.
//!
//! The file controller settles what is written and joins what settles together, as it should; ten thousand
//! changes would not reach the daemons one by one.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ambit_core::mesh::{Change, Mesh};
use ambit_core::model::Identity;
use ambit_harness::{Lab, Node, eventually};
use ambit_xds::ca::{Refusal, SignCertificate};
use ambit_xds::client::{self, Connection, Status, Update};
use ambit_xds::server::{MAX_AGE, Publisher, Server, tls_config};
use ambit_xds::{Authenticate, Caller, NodeName, Unauthenticated, async_trait};
use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;

use crate::hbone::{Authority, inside};
use crate::talk::TIMEOUT;

/// Between two looks whether every daemon has answered.
const PAUSE: Duration = Duration::from_micros(100);

/// Responses that a daemon acknowledges before it holds everything: one for each type of resource.
const FIRST_RESPONSES: u64 = 2;

/// A running feed, in the place of the lab's controller.
#[derive(Debug)]
pub struct Feed {
    mesh: Mesh,
    publisher: Publisher,
    /// Daemons that answer each change.
    daemons: u64,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A change that every daemon has taken: each of them between these two moments.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// No daemon knew it yet.
    pub sent: Instant,
    /// Every daemon had answered that it is in force.
    pub answered: Instant,
}

impl Feed {
    /// Takes over from the lab's controller, with all that the controller says at that moment.
    pub fn take_over(lab: &Lab) -> Result<Self> {
        let node = &lab.nodes[0];
        let connection = connection(node)?;
        let address: SocketAddr =
            connection.endpoint.strip_prefix("https://").context("an endpoint without TLS")?.parse()?;
        let (chain, key) = Authority::of(lab)?.issue_for_server(&connection.server_name)?;
        let tls = tls_config(&chain, &key)?;
        let mesh = mesh_of(node, connection)?;
        let publisher = Publisher::new();
        let touched = Mesh::new().apply(changes(&mesh));
        publisher.publish(&mesh, &touched);

        lab.controller.stop()?;
        let listener = lab
            .control()
            .run(|| TcpListener::bind(address))?
            .context("failed to listen at the controller's address")?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let server = Server {
            publisher: publisher.clone(),
            authenticate: Arc::new(AnyNode),
            signer: Arc::new(NoSigner),
            max_age: MAX_AGE,
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let stopped = async { drop(stopped.await) };
                server.serve(listener, tls, stopped).await.expect("the server runs");
            });
        });
        let daemons = u64::try_from(lab.nodes.len())?;
        let feed = Self { mesh, publisher, daemons, stop: Some(stop), thread: Some(thread) };
        eventually("the daemons are connected and hold what the feed has", || {
            let stats = feed.publisher.stats();
            ensure!(stats.clients == feed.daemons, "{} clients", stats.clients);
            // The first response of each type is sent even if it is empty.
            ensure!(stats.acks >= FIRST_RESPONSES * feed.daemons, "{} responses acknowledged", stats.acks);
            for node in &lab.nodes {
                ensure!(node.config_dump()?["xds"]["connected"] == true, "{} is not connected", node.name);
            }
            Ok(())
        })?;
        Ok(feed)
    }

    /// What every daemon knows.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Makes one change, and waits until every daemon has answered that it is in force.
    pub fn change(&mut self, change: Change) -> Result<Taken> {
        let touched = self.mesh.apply([change]);
        ensure!(!touched.is_empty(), "nothing is changed");
        let before = self.publisher.stats();
        let sent = Instant::now();
        self.publisher.publish(&self.mesh, &touched);
        loop {
            let stats = self.publisher.stats();
            ensure!(stats.nacks == before.nacks, "a daemon refuses the change");
            ensure!(stats.clients == self.daemons, "a daemon has left");
            if stats.acks >= before.acks + self.daemons {
                return Ok(Taken { sent, answered: Instant::now() });
            }
            ensure!(sent.elapsed() < TIMEOUT, "no answer: {stats:?}, before {before:?}");
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the controller says to a node.
fn mesh_of(node: &Node, connection: Connection) -> Result<Mesh> {
    let mesh = Arc::new(Mutex::new(Mesh::new()));
    let received = Arc::clone(&mesh);
    inside(&node.place, async move {
        let on_update = move |update: Update| {
            received.lock().apply(update.changes);
            Vec::new()
        };
        let (status, mut watched) = tokio::sync::watch::channel(Status::default());
        tokio::select! {
            ended = client::run(connection, status, on_update) => bail!("the client ended: {ended:?}"),
            synced = watched.wait_for(|status| status.synced) => Ok(synced.map(drop)?),
        }
    })?;
    let mesh = mesh.lock().clone();
    Ok(mesh)
}

/// All that is in a mesh.
fn changes(mesh: &Mesh) -> Vec<Change> {
    let policies = mesh.policies().cloned().map(Change::PutPolicy);
    let services = mesh.services().cloned().map(Change::PutService);
    policies.chain(services).chain(mesh.workloads().cloned().map(Change::PutWorkload)).collect()
}

/// The connection that the node's daemon makes.
fn connection(node: &Node) -> Result<Connection> {
    let text = std::fs::read_to_string(node.dir.join("bootstrap.yaml"))?;
    let file: serde_json::Value = serde_yaml_ng::from_str(&text)?;
    let word = |field: &str| file[field].as_str().map(str::to_owned).with_context(|| format!("no {field}"));
    Ok(Connection {
        endpoint: format!("https://{}", word("controller")?),
        server_name: word("server_name")?,
        root_pem: word("root")?,
        token: word("token")?,
        node: node.name.clone(),
    })
}

struct AnyNode;

#[async_trait]
impl Authenticate for AnyNode {
    async fn node(&self, _: &str) -> Result<NodeName, Unauthenticated> {
        Ok(NodeName::new("any"))
    }
}

/// Signs nothing: the daemons have their certificates.
struct NoSigner;

impl SignCertificate for NoSigner {
    fn sign(&self, _: &Caller, _: Option<&Identity>, _: &str, _: Duration) -> Result<Vec<String>, Refusal> {
        Err(Refusal::Unavailable("not now".to_owned()))
    }
}
