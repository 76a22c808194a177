//! The daemon put together: [`run`] starts everything, waits for a signal to end, and drains.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ambit_certificates::{self as certificates, Certificates};
use ambit_core::chain;
use ambit_daemon_kit::admin::{Admin, Readiness};
use ambit_daemon_kit::allocator;
use ambit_daemon_kit::bootstrap::Bootstrap;
use ambit_daemon_kit::controller::Controller;
use ambit_daemon_kit::signals::Shutdown;
use ambit_daemon_kit::telemetry::{logs, metrics::Metrics};
use ambit_loader::Dataplane;
use ambit_proxy::controller::{CaSigner, ControllerCredentials};
use ambit_proxy::report::forget_series_after;
use ambit_proxy::sync::MeshSync;
use ambit_proxy::tasks;
use ambit_xds::client::Status;
use tokio::sync::watch;

use crate::config::Config;
use crate::direct::Scope;
use crate::enroller::Enroller;
use crate::error::Error;
use crate::follower::KernelFollower;
use crate::node::Node;
use crate::{admin, links, metrics, upkeep};

/// How long the last requests to the admin servers may take at the very end.
const ADMIN_END: Duration = Duration::from_secs(1);
/// How often a lease is renewed before it runs out.
const RENEWALS: u32 = 4;
/// How often the metrics of open connections are updated.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Where this instance is pinned and attached.
pub(crate) fn kernel_settings(config: &Config) -> Result<ambit_loader::Settings, Error> {
    let instance = config.instance.parse().map_err(|source| Error::Instance { source })?;
    Ok(ambit_loader::Settings {
        instance,
        bpffs: config.bpffs.clone(),
        cgroup: config.cgroup.clone(),
        object: None,
    })
}

/// Runs the daemon until a termination signal.
pub(crate) async fn run(config: Config) -> Result<(), Error> {
    let shutdown = Shutdown::install()?;
    let (log, flush) = logs::install(&config.log)?;
    let exposed = Metrics::new("ztunnel");
    exposed.collect_runtime();
    forget_series_after(config.metrics_idle());
    let readiness = Readiness::new();
    let (attached, enrolling, synced) =
        (readiness.condition("dataplane"), readiness.condition("enrolment"), readiness.condition("xds"));
    raise_descriptor_limit();
    if let Some(bytes) = config.tunnel_memory() {
        ambit_hbone::memory::limit(bytes);
    }
    tokio::spawn(allocator::follow());

    let controller = controller(&config)?;
    let credentials = ControllerCredentials { controller: controller.clone(), node: config.node.clone() };
    let settings = certificates::Settings { ttl: config.certificate_ttl(), roots: controller.roots()? };
    let certificates = Certificates::new(CaSigner::new(credentials.clone())?, &settings)?;

    let dataplane = attach(&config)?;
    attached.met();
    let closing = can_close_sockets();

    let (node, rechecks) = Node::new(config, dataplane, certificates, closing)?;
    let node = Arc::new(node);
    node.direct.start(rechecks)?;
    let direct = node.direct.clone();
    links::follow(node.links.clone(), move || direct.recheck(Scope::All))?;
    let (xds_status, xds) = watch::channel(Status::default());
    metrics::show(&node, xds.clone(), &exposed);
    let admin = admin::start(&node, &log, &exposed, &readiness, xds.clone())?;
    let socket = socket_path(&node.config.run_dir)?;
    let server = ambit_enrol::Server::bind(&socket)?;
    let enroller =
        Arc::new(Enroller::start(node.clone(), &node.config.run_dir, readiness.condition("pods"))?);
    let enrolment = tokio::spawn(ambit_enrol::serve(server, enroller.clone()));
    enrolling.met();
    upkeep::start(node.clone(), enroller, socket, readiness.condition("kernel"))?;

    tokio::spawn(tasks::follow_certificates(&node.identities.certificates, node.pool.clone()));
    tokio::spawn(tasks::follow_roots(controller, node.identities.certificates.clone()));
    tokio::spawn(housekeeping(node.clone()));
    tokio::spawn(keep_leases(node.clone()));
    tokio::spawn(follow_ejections(node.clone()));
    tokio::spawn(tasks::follow_status(xds, synced));
    let (state, connections) = (node.proxy.mesh.clone(), node.proxy.connections.clone());
    let sync = MeshSync::new(state, connections, KernelFollower(node.clone()));
    tokio::spawn(tasks::follow_controller(credentials, xds_status, sync));
    tracing::info!(instance = node.config.instance, node = node.config.node, "ztunnel started");

    shutdown.drain(&node.proxy.drain).await;
    enrolling.unmet("draining");
    enrolment.abort();
    node.pool.retire_all();
    finish(&node, admin).await;
    drop(flush);
    Ok(())
}

/// Attaches the instance's programs, and says which network namespace is the node's.
fn attach(config: &Config) -> Result<Dataplane, Error> {
    let dataplane = Dataplane::open(&kernel_settings(config)?)
        .map_err(|source| Error::Dataplane { operation: "attach the instance", source })?;
    if config.host_network {
        let own = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))
            .and_then(|socket| ambit_loader::netns_cookie(socket.as_fd()))
            .map_err(|source| Error::System {
                operation: "read the cookie of the network namespace",
                source,
            })?;
        dataplane
            .set_host(own)
            .map_err(|source| Error::Dataplane { operation: "write the node's network namespace", source })?;
    }
    Ok(dataplane)
}

/// Whether open connections can be closed when a policy forbids them. Otherwise the kernel must carry none by
/// itself.
fn can_close_sockets() -> bool {
    match ambit_diag::can_close_sockets() {
        Ok(true) => true,
        Ok(false) => {
            tracing::error!("kernel cannot close sockets: every connection is carried by the daemon");
            false
        }
        Err(error) => {
            let error = chain(&error);
            tracing::error!(error, "failed to close a socket: every connection is carried by the daemon");
            false
        }
    }
}

/// Lets open connections end, then cuts them. Pins stay: enrolled pods fail closed until the next daemon
/// starts.
async fn finish(node: &Node, admin: Admin) {
    if let Err(error) = node.proxy.drain.finish(node.config.drain_timeout()).await {
        tracing::warn!(error = chain(&error), "connections cut at the drain deadline");
    }
    node.direct.report_records();
    admin.stop(ADMIN_END).await;
    tracing::info!("ztunnel stopped");
}

/// The controller, as the configuration says it is reached.
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
        operation: "create",
        path: run_dir.to_owned(),
        source,
    })?;
    Ok(run_dir.join("enrol.sock"))
}

/// Each connection takes two descriptors, so the soft limit would be reached first.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "limit of descriptors raised"),
        Err(error) => tracing::warn!(%error, "failed to raise the limit of descriptors"),
    }
}

/// Ends ejections in time, and keeps ejected endpoints out of the kernel's choice.
async fn follow_ejections(node: Arc<Node>) {
    let mut changes = node.proxy.endpoints.changes();
    let mut known = node.proxy.endpoints.ejected();
    loop {
        node.proxy.endpoints.changed(&mut changes).await;
        node.proxy.endpoints.advance();
        let ejected = node.proxy.endpoints.ejected();
        if ejected != known {
            known = ejected;
            node.direct.rebalance();
        }
    }
}

/// Renews what the kernel may do by itself while this daemon lives.
async fn keep_leases(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(node.config.direct.lease() / RENEWALS);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        node.renew_leases();
    }
}

/// What is done periodically: metrics of open connections, and kernel writes that failed before.
async fn housekeeping(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        node.proxy.connections.progress();
        if let Some(mesh) = node.proxy.mesh.mesh() {
            node.capture.retry(&mesh, &node.pods.all());
            node.direct.retry();
        }
    }
}
