//! The daemon put together: [`run`] starts everything, waits for the end, and drains.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ambit_certificates::{self as certificates, Certificates};
use ambit_core::mesh::Mesh;
use ambit_core::model::WorkloadUid;
use ambit_daemon_kit::admin::{Admin, Readiness};
use ambit_daemon_kit::bootstrap::Bootstrap;
use ambit_daemon_kit::controller::Controller;
use ambit_daemon_kit::drain::Drain;
use ambit_daemon_kit::signals::Shutdown;
use ambit_daemon_kit::telemetry::{connection, logs, metrics::Metrics};
use ambit_hbone::pool::Pool;
use ambit_hbone::server::{self, Server};
use ambit_loader::Dataplane;
use ambit_xds::client::Status;
use tokio::sync::{broadcast, watch};

use crate::config::Config;
use crate::connections::Connections;
use crate::dial::PodDialer;
use crate::direct::{self, Direct};
use crate::endpoints::Endpoints;
use crate::enroller::Enroller;
use crate::error::Error;
use crate::kernel::Kernel;
use crate::pods::{Pod, Pods};
use crate::shares::Shares;
use crate::signer::{Ca, Way};
use crate::state::State;
use crate::sync::Sync;
use crate::{addresses, admin, health, report};

/// How long the last scrape and the last question may take at the very end.
const ADMIN_END: Duration = Duration::from_secs(1);
/// How often the file of roots is read.
const ROOTS_INTERVAL: Duration = Duration::from_secs(5);
/// How often metrics of open connections follow what was carried.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// What every connection's task may use.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) state: State,
    pub(crate) endpoints: Endpoints,
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) pods: Arc<Pods>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) direct: Direct,
    pub(crate) certificates: Certificates,
    pub(crate) pool: Pool<PodDialer>,
    pub(crate) server: Server,
    pub(crate) drain: Drain,
    pub(crate) shares: Shares,
}

impl Node {
    fn new(config: Config, dataplane: Dataplane, direct: Direct, certificates: Certificates) -> Self {
        let kernel = Arc::new(Kernel::new(dataplane));
        let pods = Arc::new(Pods::default());
        let dialer =
            PodDialer { pods: pods.clone(), kernel: kernel.clone(), http2: ambit_hbone::Http2::default() };
        Self {
            state: State::new(),
            endpoints: Endpoints::new(config.ejection()),
            pool: Pool::new(dialer, config.endpoint_timeout()),
            server: Server::observed(server::Settings::default(), |took| {
                health::HANDSHAKE.observe("server", took);
            }),
            kernel,
            pods,
            connections: Arc::default(),
            direct,
            certificates,
            drain: Drain::new(),
            shares: Shares::of_descriptors(),
            config,
        }
    }

    /// Gives a pod the identity that its workload has in the mesh.
    pub(crate) fn identify(&self, mesh: &Mesh, pod: &Pod) {
        let identity = mesh.workload(&pod.uid).map(|workload| workload.identity());
        if pod.identify(identity.as_ref(), &self.certificates) {
            self.pool.retire_source(&pod.uid);
        }
    }

    /// A pod is out of the kernel: nothing new for it. What is open goes on until its ends close it.
    pub(crate) fn released(&self, uid: &str) {
        let uid = WorkloadUid(uid.into());
        if let Some(pod) = self.pods.remove(&uid) {
            pod.released.cancel();
        }
        self.direct.released(self, &uid);
        self.pool.retire_source(&uid);
    }
}

/// Where the kernel's side is.
pub(crate) fn kernel_settings(config: &Config) -> Result<ambit_loader::Settings, Error> {
    let instance = config.instance.parse().map_err(|source| Error::Instance { source })?;
    Ok(ambit_loader::Settings { instance, bpffs: config.bpffs.clone(), cgroup: config.cgroup.clone() })
}

/// Runs the daemon until it is told to end.
pub(crate) async fn run(config: Config) -> Result<(), Error> {
    let shutdown = Shutdown::install()?;
    let (log, flush) = logs::install(&config.log)?;
    let metrics = Metrics::new("ztunnel");
    metrics.collect_runtime();
    connection::forget_series_after(config.metrics_idle());
    let readiness = Readiness::new();
    let (attached, enrolling, synced) =
        (readiness.condition("dataplane"), readiness.condition("enrolment"), readiness.condition("xds"));
    raise_descriptor_limit();

    let way = Way { controller: controller(&config)?, node: config.node.clone() };
    let ca = Ca(ambit_xds::ca::Client::new(way.clone())?);
    let settings = certificates::Settings { ttl: config.certificate_ttl(), roots: way.controller.roots()? };
    let certificates = Certificates::new(ca, &settings)?;

    let (dataplane, own) = attach(&config)?;
    attached.met();

    let (direct, asked) = Direct::new(&config.direct, &dataplane)?;
    let node = Arc::new(Node::new(config, dataplane, direct, certificates));
    direct::start(&node, asked)?;
    let (xds_status, xds) = watch::channel(Status::default());
    health::show(&node, xds.clone(), &metrics);
    let admin = admin::start(&node, &log, &metrics, &readiness, xds.clone())?;
    let server = ambit_enrol::Server::bind(&socket_path(&node.config.run_dir)?)?;
    let enroller =
        Arc::new(Enroller::start(node.clone(), &node.config.run_dir, readiness.condition("pods"))?);
    let enrolment = tokio::spawn(ambit_enrol::serve(server, enroller));
    enrolling.met();

    tokio::spawn(addresses::follow(node.clone(), own));
    tokio::spawn(follow_certificates(node.clone()));
    tokio::spawn(follow_roots(node.clone(), way.controller.clone()));
    tokio::spawn(keep_house(node.clone()));
    tokio::spawn(follow_ejections(node.clone()));
    tokio::spawn(follow_status(xds, synced));
    tokio::spawn(follow_controller(node.clone(), way, xds_status));
    tracing::info!(instance = node.config.instance, node = node.config.node, "ztunnel runs");

    shutdown.drain(&node.drain).await;
    enrolling.unmet("draining");
    enrolment.abort();
    node.pool.retire_all();
    finish(&node, admin).await;
    drop(flush);
    Ok(())
}

/// The kernel's side of the instance, told the node's addresses.
fn attach(config: &Config) -> Result<(Dataplane, BTreeSet<IpAddr>), Error> {
    let dataplane = Dataplane::open(&kernel_settings(config)?)
        .map_err(|source| Error::Dataplane { object: format!("instance {}", config.instance), source })?;
    let own = addresses::of_node(config.node_network.as_deref())?;
    dataplane
        .set_node_addresses(&own)
        .map_err(|source| Error::Dataplane { object: "the node's addresses".to_owned(), source })?;
    Ok((dataplane, own))
}

/// Lets open connections end, then ends them. Pins stay: enrolled pods are closed until the next daemon
/// comes.
async fn finish(node: &Node, admin: Admin) {
    if let Err(error) = node.drain.finish(node.config.drain_timeout()).await {
        tracing::warn!(error = report::chain(&error), "connections were cut");
    }
    node.report_records();
    admin.stop(ADMIN_END).await;
    tracing::info!("ztunnel has ended");
}

/// How the configuration says the controller is reached.
fn controller(config: &Config) -> Result<Controller, Error> {
    match (&config.bootstrap, &config.controller) {
        (Some(path), _) => {
            let bootstrap = Bootstrap::read(path)?;
            if bootstrap.node != config.node {
                return Err(Error::NodeMismatch { bootstrap: bootstrap.node, config: config.node.clone() });
            }
            Ok(bootstrap.into())
        }
        (None, Some(settings)) => Ok(settings.clone().into()),
        (None, None) => Err(Error::NoController),
    }
}

fn socket_path(run_dir: &Path) -> Result<std::path::PathBuf, Error> {
    std::fs::create_dir_all(run_dir).map_err(|source| Error::File {
        operation: "making",
        path: run_dir.to_owned(),
        source,
    })?;
    Ok(run_dir.join("enrol.sock"))
}

/// Each connection takes two descriptors, so the soft limit is the daemon's first bottleneck.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "descriptors"),
        Err(error) => tracing::warn!(%error, "raising the limit of descriptors"),
    }
}

/// Takes what the controller sends, for ever.
async fn follow_controller(node: Arc<Node>, way: Way, status: watch::Sender<Status>) {
    let mut sync = Sync::new(node);
    let Err(error) = ambit_xds::client::run(way, status, move |update| sync.apply(update)).await;
    tracing::error!(error = report::chain(&error), "configuration cannot be followed");
}

/// Says whether configuration has come. A controller that goes away later takes nothing back.
async fn follow_status(mut status: watch::Receiver<Status>, synced: ambit_daemon_kit::admin::Condition) {
    loop {
        let now = status.borrow_and_update().clone();
        if now.synced {
            synced.met();
            return;
        }
        synced.unmet(now.error.unwrap_or_else(|| "waiting for the controller".to_owned()));
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Roots are replaced while they rotate, in a file or never.
async fn follow_roots(node: Arc<Node>, controller: Controller) {
    let mut ticks = tokio::time::interval(ROOTS_INTERVAL);
    loop {
        ticks.tick().await;
        let roots = controller.roots().map_err(ambit_certificates::Error::from);
        let taken = roots.and_then(|roots| node.certificates.trust(&roots));
        match taken {
            Ok(true) => tracing::info!("other roots are trusted"),
            Ok(false) => {}
            Err(error) => tracing::error!(error = error.chain(), "the roots that were trusted stay"),
        }
    }
}

/// Connections to peers show the certificate they were made with: a new certificate takes new ones.
async fn follow_certificates(node: Arc<Node>) {
    let mut changes = node.certificates.changes();
    loop {
        match changes.recv().await {
            Ok(identity) => node.pool.retire_identity(&identity),
            Err(broadcast::error::RecvError::Lagged(_)) => node.pool.retire_all(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Ends ejections in time, and lets the kernel choose without those who are ejected.
async fn follow_ejections(node: Arc<Node>) {
    let mut changes = node.endpoints.changes();
    let mut known = node.endpoints.ejected();
    loop {
        node.endpoints.changed(&mut changes).await;
        node.endpoints.advance();
        let ejected = node.endpoints.ejected();
        if ejected != known {
            known = ejected;
            node.direct.rebalance(&node);
        }
    }
}

/// What is done again and again: metrics of open connections, kernel writes that failed.
async fn keep_house(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        node.connections.progress();
        if let Some(mesh) = node.state.mesh() {
            node.kernel.retry(&mesh, &node.pods.all());
            node.direct.retry(&node);
        }
    }
}
