//! The node agent: it keeps the CNI plugin installed, enrols running pods when they are labelled, annotates
//! each pod with its state, and removes everything from the node when Ambit is uninstalled. What is then left
//! in the API is removed by [`sweep`].
//!
//! Entry point: [`run`]. One agent of a node acts at a time ([`lock`]); then [`watch`] and [`token`] keep the
//! plugin installed, and [`reconciler`] drives [`state`], which decides which pods are enrolled.

mod claim;
mod cluster;
mod config;
mod conflist;
mod enroller;
mod error;
mod files;
mod installer;
mod lock;
mod namespaces;
mod placement;
mod pod;
mod progress;
mod reconciler;
mod requests;
mod state;
mod step;
mod sweep;
mod telemetry;
mod token;
mod uninstall;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ambit_daemon_kit::admin::{Admin, Readiness, Response, Router, Server, logging_routes};
use ambit_daemon_kit::signals::Shutdown;
use ambit_daemon_kit::telemetry::logs;
use ambit_daemon_kit::telemetry::metrics::Metrics;
use ambit_kube::access;
use ambit_kube::error::chain;
pub use ambit_kube::remains::Remains;
use ambit_kube::retry::within;
use claim::Claim;
use cluster::Cluster;
pub use config::Config;
pub use error::AgentError;
use error::io_error;
use installer::{Installation, KUBECONFIG, Layout};
use parking_lot::Mutex;
use reconciler::{Conditions, Reconciler};
use requests::Requests;
pub use sweep::sweep;
use telemetry::Shown;
use token::Tokens;
use tokio::sync::Notify;
use uninstall::{Owner, Traces, Verdict};
use watch::Installer;

use crate::entry::{Entry, PLUGIN};

/// The lock among the agents of a node, in the run folder.
const LOCK: &str = "agent.lock";
/// The plugin's log, in the run folder: it is removed with everything else.
const PLUGIN_LOG: &str = "ambit-cni.log";
/// The deadline for removing the annotations of this node's pods.
const ANNOTATIONS_DEADLINE: Duration = Duration::from_secs(5);
/// The deadline of a connection to the API server.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks at the API server's CA certificates.
const AUTHORITIES_LOOK: Duration = Duration::from_secs(10);
/// How long the admin servers may take to answer open requests.
const ADMIN_STOP: Duration = Duration::from_millis(500);

/// Runs until a termination signal.
pub fn run(config: &Config) -> Result<(), AgentError> {
    let (logs, _flush) = logs::install(&config.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io_error("start the runtime"))?;
    let result = runtime.block_on(serve(config, &logs));
    if let Err(error) = &result {
        tracing::error!(error = chain(error), "failed to run the agent");
    }
    runtime.shutdown_timeout(ADMIN_STOP);
    result
}

async fn serve(config: &Config, logs: &logs::Control) -> Result<(), AgentError> {
    let mut shutdown = Shutdown::install()?;
    // Before this pod's ztunnel starts.
    let claim = Claim::stake(&config.run_dir).await.map_err(io_error("claim the node"))?;
    let readiness = Readiness::new();
    let shown = Shown::default();
    let admin = start_admin(config, logs, &readiness, &shown)?;
    let (client, authorities) = connect(config).await?;
    let cluster = Cluster {
        client: client.clone(),
        node: config.node.clone(),
        system_namespace: config.namespace.clone(),
        excluded: config.excluded_namespaces.clone(),
    };
    let owner = config.daemon_set.as_ref().map(|name| Owner {
        client,
        namespace: config.namespace.clone(),
        name: name.clone(),
        pod: std::env::var("POD_NAME").ok().filter(|name| !name.is_empty()),
        node: config.node.clone(),
        run_dir: config.run_dir.clone(),
        uid: Mutex::default(),
    });
    let (uninstalling, mut uninstalled) = tokio::sync::watch::channel(false);
    let signal = tokio::select! {
        signal = shutdown.recv() => signal,
        result = act(config, &readiness, &shown, &cluster, &mut uninstalled) => {
            result?;
            // While the agent still has the permissions.
            uninstall(config, &cluster, &claim, owner.as_ref(), true, async |_, cluster| {
                remove_annotations(cluster).await;
            })
            .await;
            shutdown.recv().await
        }
        () = watch_owner(owner.as_ref(), &claim, &uninstalling) => shutdown.recv().await,
        () = changed_authorities(config, &authorities) => {
            admin.stop(ADMIN_STOP).await;
            return Ok(());
        }
    };
    tracing::info!(signal, "agent stopping");
    let deletion_seen = *uninstalling.borrow();
    uninstall(config, &cluster, &claim, owner.as_ref(), deletion_seen, remove_traces).await;
    admin.stop(ADMIN_STOP).await;
    Ok(())
}

/// A client of the API server, and the CA certificates that it trusts.
async fn connect(config: &Config) -> Result<(kube::Client, String), AgentError> {
    let mut access = access::config(config.kubeconfig.as_deref()).await?;
    access.connect_timeout = Some(CONNECT_DEADLINE);
    // A watch ends before; a connection that died silently ends with this.
    access.read_timeout = Some(Duration::from_secs(u64::from(reconciler::WATCH_SECONDS)) + CONNECT_DEADLINE);
    let authorities = token::authorities(&access);
    let client = kube::Client::try_from(access)
        .map_err(|source| AgentError::Api { operation: "create the API client", source: source.into() })?;
    Ok((client, authorities))
}

/// Resolves when the API server's CA certificates have changed: a client keeps those it was made with. The
/// process ends then and is started again.
async fn changed_authorities(config: &Config, authorities: &str) {
    loop {
        tokio::time::sleep(AUTHORITIES_LOOK).await;
        if let Ok(now) = access::config(config.kubeconfig.as_deref()).await
            && token::authorities(&now) != authorities
        {
            return tracing::info!("the API server's CA certificates have changed: starting again");
        }
    }
}

/// Signals that Ambit is uninstalled from this node; never returns.
async fn watch_owner(owner: Option<&Owner>, claim: &Claim, uninstalling: &tokio::sync::watch::Sender<bool>) {
    if let Some(owner) = owner {
        owner.deleted(claim, uninstalling).await;
    }
    std::future::pending::<()>().await;
}

/// The agent's work, until Ambit is uninstalled from this node.
async fn act(
    config: &Config,
    readiness: &Readiness,
    shown: &Shown,
    cluster: &Cluster,
    uninstalled: &mut tokio::sync::watch::Receiver<bool>,
) -> Result<(), AgentError> {
    let _lock = take_turn(&config.run_dir.join(LOCK), readiness).await?;
    if *uninstalled.borrow() {
        return Ok(());
    }
    let plugin = readiness.condition("plugin");
    let credential = readiness.condition("credential");
    let conditions = Conditions {
        api: readiness.condition("api"),
        ztunnel: readiness.condition("ztunnel"),
        pods: readiness.condition("pods"),
    };
    let installation = Installation::new(layout(config)?, entry(config));
    let installer =
        Installer::start(installation, plugin).map_err(io_error("start the installer's thread"))?;
    let refused = Arc::new(Notify::new());
    let requests = Requests::open(&config.run_dir, cluster.clone(), refused.clone())
        .map_err(io_error("open the plugin's socket"))?;
    let tokens = Tokens {
        namespace: config.namespace.clone(),
        service_account: config.cni_service_account.clone(),
        node: config.node.clone(),
        server: config.api_server.clone(),
        kubeconfig: config.kubeconfig.clone(),
        refused,
        expiry: shown.credential_expiry.clone(),
        condition: credential,
    };
    let settings = enroller::Settings {
        socket: config.run_dir.join("enrol.sock"),
        proc: config.proc.clone(),
        cluster: config.cluster.clone(),
        deadline: enroller::DEADLINE,
    };
    let reconciler = Reconciler::new(cluster.clone(), settings, conditions, shown.counts.clone())
        .map_err(io_error("start the enroller's thread"))?;
    tokio::select! {
        () = tokens.keep(installer.clone()) => {}
        () = reconciler.run() => {}
        () = requests.serve() => {}
        _ = uninstalled.wait_for(|uninstalled| *uninstalled) => {}
    }
    // From here on nothing is written again that is about to be removed.
    installer.stop();
    Ok(())
}

/// Waits until no other agent of this node acts.
async fn take_turn(path: &Path, readiness: &Readiness) -> Result<lock::Lock, AgentError> {
    let turn = readiness.condition("turn");
    if let Some(lock) = lock::try_take(path).map_err(io_error("take the agents' lock"))? {
        turn.met();
        return Ok(lock);
    }
    // A rolling update ends the old pod only when the new one is ready.
    turn.met_because("standing by; another agent of this node is active");
    tracing::info!("standing by; another agent of this node is active");
    let lock = lock::take(path.to_owned()).await.map_err(io_error("wait for the agents' lock"))?;
    turn.met();
    tracing::info!("agent active");
    Ok(lock)
}

/// Does this part of an uninstallation, if Ambit is to be removed from this node and no other agent has taken
/// it over.
async fn uninstall(
    config: &Config,
    cluster: &Cluster,
    claim: &Claim,
    owner: Option<&Owner>,
    deletion_seen: bool,
    part: impl AsyncFnOnce(&Config, &Cluster),
) {
    let Some(owner) = owner else { return };
    let verdict = owner.verdict(deletion_seen).await;
    if verdict == Verdict::Keep {
        return;
    }
    match claim.hold(owner.uid().as_deref()).await {
        Ok(Some(_lock)) => {
            tracing::info!(?verdict, "uninstalling from this node");
            part(config, cluster).await;
        }
        Ok(None) => tracing::info!(?verdict, "nothing removed: another agent has taken over this node"),
        Err(error) => tracing::error!(%error, "uninstall failed"),
    }
}

/// Removes everything of Ambit from the node.
async fn remove_traces(config: &Config, cluster: &Cluster) {
    remove_annotations(cluster).await;
    let layout = match layout(config) {
        Ok(layout) => layout,
        Err(error) => return tracing::error!(error = chain(&error), "failed to uninstall"),
    };
    let traces = Traces {
        layout,
        pins: config.bpffs.join(&config.instance),
        run_dir: config.run_dir.clone(),
        outside: config
            .host_root
            .join(config.host_run_dir().strip_prefix("/").unwrap_or(config.host_run_dir())),
    };
    for error in traces.remove() {
        tracing::error!(error, "failed to uninstall completely");
    }
    tracing::info!("uninstalled from this node");
}

/// Removes the annotations of this node's pods, as far as the agent still has the permission.
async fn remove_annotations(cluster: &Cluster) {
    match within(ANNOTATIONS_DEADLINE, cluster.remove_annotations()).await {
        Ok(pods) => tracing::info!(pods, "annotations removed"),
        Err(error) => tracing::warn!(error = chain(&error), "failed to remove annotations"),
    }
}

fn start_admin(
    config: &Config,
    logs: &logs::Control,
    readiness: &Readiness,
    shown: &Shown,
) -> Result<Admin, AgentError> {
    let metrics = Metrics::new("node");
    metrics.collect_runtime();
    telemetry::show(&metrics, shown.clone());
    // The pod's other containers start when this answers, whether the agent is active or standing by.
    let started = Router::new().get("/healthz/started", |_| std::future::ready(Response::text("started\n")));
    let mut servers = vec![
        Server { name: "metrics", address: config.metrics, router: Router::new().metrics(&metrics) },
        Server { name: "readiness", address: config.readiness, router: readiness.routes().merge(started) },
    ];
    if let Some(address) = config.admin {
        servers.push(Server { name: "admin", address, router: logging_routes(logs) });
    }
    Ok(Admin::start(servers)?)
}

fn layout(config: &Config) -> Result<Layout, AgentError> {
    let beside = || -> io::Result<PathBuf> { Ok(std::env::current_exe()?.with_file_name(PLUGIN)) };
    let source =
        config.plugin.clone().map_or_else(beside, Ok).map_err(io_error("find the plugin's binary"))?;
    Ok(Layout { source, bin_dir: config.cni_bin_dir.clone(), conf_dir: config.cni_conf_dir.clone() })
}

fn entry(config: &Config) -> Entry {
    Entry {
        kind: PLUGIN.to_owned(),
        kubeconfig: config.host_cni_conf_dir.join(KUBECONFIG),
        socket: config.host_run_dir().join("enrol.sock"),
        cluster: config.cluster.clone(),
        excluded_namespaces: config.excluded_namespaces.clone(),
        log_file: Some(config.host_run_dir().join(PLUGIN_LOG)),
        wraps_conf: false,
    }
}
