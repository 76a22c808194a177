//! The node agent: it keeps the CNI plugin installed, enrols pods that already run when they are labelled,
//! says on each pod whether it is captured, and takes everything off the node when Ambit is uninstalled. What
//! is then left in the API goes with [`sweep`].
//!
//! Way in: [`run`]. One agent of a node acts at a time ([`lock`]); then [`watch`] and [`token`] keep the
//! plugin installed, and [`reconciler`] drives [`state`], which decides who is to be enrolled.

mod cluster;
mod config;
mod conflist;
mod enroller;
mod files;
mod installer;
mod lock;
mod namespaces;
mod pod;
mod reconciler;
mod state;
mod sweep;
mod telemetry;
mod token;
mod uninstall;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_daemon_kit::admin::{Admin, Readiness, Response, Router, Server, logging_routes};
use ambit_daemon_kit::signals::Shutdown;
use ambit_daemon_kit::telemetry::logs;
use ambit_daemon_kit::telemetry::metrics::Metrics;
use kube::config::{KubeConfigOptions, Kubeconfig};

pub use config::Config;
pub use sweep::{Remains, sweep};

use crate::chain;
use crate::entry::{Entry, PLUGIN};
use cluster::Cluster;
use installer::{Installation, KUBECONFIG, Layout};
use reconciler::{Conditions, Reconciler};
use telemetry::Shown;
use token::Tokens;
use uninstall::{Owner, Traces};
use watch::Installer;

/// Among the agents of a node.
const LOCK: &str = "agent.lock";
/// The plugin's log, in the run folder: it goes with everything else.
const PLUGIN_LOG: &str = "ambit-cni.log";
/// For taking annotations off, which needs the API server.
const FORGET_PATIENCE: Duration = Duration::from_secs(5);
/// The admin servers' last answers.
const ADMIN_STOP: Duration = Duration::from_millis(500);

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("{operation}")]
    Io { operation: &'static str, source: io::Error },
    #[error("how to reach the API server: {0}")]
    KubeConfig(String),
    #[error("{operation}")]
    Api { operation: &'static str, source: kube::Error },
    #[error("{0}")]
    Answer(&'static str),
    #[error(transparent)]
    Daemon(#[from] ambit_daemon_kit::Error),
}

/// Runs until a signal ends it.
pub fn run(config: &Config) -> Result<(), AgentError> {
    let (logs, _flush) = logs::install(&config.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("starting the runtime"))?;
    let result = runtime.block_on(serve(config, &logs));
    if let Err(error) = &result {
        tracing::error!(error = chain(error), "the agent ends");
    }
    runtime.shutdown_timeout(ADMIN_STOP);
    result
}

async fn serve(config: &Config, logs: &logs::Control) -> Result<(), AgentError> {
    let mut shutdown = Shutdown::install()?;
    std::fs::create_dir_all(&config.run_dir).map_err(failed("making the run folder"))?;
    let readiness = Readiness::new();
    let shown = Shown::default();
    let admin = start_admin(config, logs, &readiness, &shown)?;
    let client = kube::Client::try_from(kube_config(config.kubeconfig.as_deref()).await?)
        .map_err(|source| AgentError::Api { operation: "preparing to reach the API server", source })?;
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
        run_dir: config.run_dir.clone(),
    });
    let (leaving, mut leaves) = tokio::sync::watch::channel(false);
    let signal = tokio::select! {
        signal = shutdown.recv() => signal,
        result = act(config, &readiness, &shown, &cluster, &mut leaves) => {
            result?;
            shutdown.recv().await
        }
        () = follow(owner.as_ref(), &leaving) => shutdown.recv().await,
    };
    tracing::info!(signal, "the agent ends");
    let deleted = match &owner {
        Some(owner) => *leaving.borrow() || owner.is_deleted().await,
        None => false,
    };
    if deleted {
        leave(config, &cluster).await;
    }
    admin.stop(ADMIN_STOP).await;
    Ok(())
}

/// Says when Ambit leaves this node; never returns.
async fn follow(owner: Option<&Owner>, leaving: &tokio::sync::watch::Sender<bool>) {
    if let Some(owner) = owner {
        owner.deleted(leaving).await;
    }
    std::future::pending::<()>().await;
}

/// The agent's work, until Ambit leaves this node.
async fn act(
    config: &Config,
    readiness: &Readiness,
    shown: &Shown,
    cluster: &Cluster,
    leaves: &mut tokio::sync::watch::Receiver<bool>,
) -> Result<(), AgentError> {
    let _lock = take_turn(&config.run_dir.join(LOCK), readiness).await?;
    if *leaves.borrow() {
        return Ok(());
    }
    let plugin = readiness.condition("plugin");
    let credential = readiness.condition("credential");
    let conditions = Conditions {
        api: readiness.condition("api"),
        ztunnel: readiness.condition("ztunnel"),
        pods: readiness.condition("pods"),
    };
    let installation = Installation { layout: layout(config)?, entry: entry(config), credential: None };
    let installer =
        Installer::start(installation, plugin).map_err(failed("starting the installer's thread"))?;
    let tokens = Tokens {
        client: cluster.client.clone(),
        namespace: config.namespace.clone(),
        service_account: config.cni_service_account.clone(),
        server: config.api_server.clone(),
        kubeconfig: config.kubeconfig.clone(),
        expiry: shown.credential_expiry.clone(),
        condition: credential,
    };
    let settings = enroller::Settings {
        socket: config.run_dir.join("enrol.sock"),
        proc: config.proc.clone(),
        cluster: config.cluster.clone(),
        patience: enroller::PATIENCE,
    };
    let reconciler = Reconciler::new(cluster.clone(), settings, conditions, shown.counts.clone())
        .map_err(failed("starting the enroller's thread"))?;
    tokio::select! {
        () = tokens.keep(installer.clone()) => {}
        () = reconciler.run() => {}
        _ = leaves.wait_for(|leaves| *leaves) => {}
    }
    // From here on nothing is put back that is about to be removed.
    installer.stop();
    // While the agent's own rights are still there.
    forget(cluster).await;
    Ok(())
}

/// Waits until no other agent of this node acts.
async fn take_turn(path: &Path, readiness: &Readiness) -> Result<lock::Lock, AgentError> {
    let turn = readiness.condition("turn");
    if let Some(lock) = lock::try_take(path).map_err(failed("taking the agents' lock"))? {
        turn.met();
        return Ok(lock);
    }
    // An upgrade goes on only when the new pod is ready, and ends the old one then.
    turn.met_because("waiting: another agent of this node acts, this one follows when that ends");
    tracing::info!("waiting for the other agent of this node to end");
    let lock = lock::take(path.to_owned()).await.map_err(failed("waiting for the agents' lock"))?;
    turn.met();
    tracing::info!("this agent acts now");
    Ok(lock)
}

/// Takes everything off the node.
async fn leave(config: &Config, cluster: &Cluster) {
    forget(cluster).await;
    let layout = match layout(config) {
        Ok(layout) => layout,
        Err(error) => return tracing::error!(error = chain(&error), "uninstalling"),
    };
    let traces = Traces {
        layout,
        pins: config.bpffs.join(&config.instance),
        run_dir: config.run_dir.clone(),
        outside: config
            .host_root
            .join(config.host_run_dir().strip_prefix("/").unwrap_or(config.host_run_dir())),
    };
    for problem in traces.remove() {
        tracing::error!(problem, "uninstalling");
    }
    tracing::info!("Ambit has left this node");
}

/// Takes the annotations off, as far as the API server still lets us.
async fn forget(cluster: &Cluster) {
    match tokio::time::timeout(FORGET_PATIENCE, cluster.forget_all()).await {
        Ok(Ok(pods)) => tracing::info!(pods, "annotations are off"),
        Ok(Err(error)) => tracing::warn!(error = chain(&error), "taking annotations off"),
        Err(_elapsed) => tracing::warn!("taking annotations off: the API server does not answer in time"),
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
    // The pod's other containers start when this is up, whether it may act yet or not.
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
        config.plugin.clone().map_or_else(beside, Ok).map_err(failed("finding the plugin's binary"))?;
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

/// How to reach the API server: by the file, else as pods do.
async fn kube_config(file: Option<&Path>) -> Result<kube::Config, AgentError> {
    let wrong = |message: String| AgentError::KubeConfig(message);
    let Some(path) = file else {
        return kube::Config::incluster().map_err(|error| wrong(chain(&error)));
    };
    let file = Kubeconfig::read_from(path).map_err(|error| wrong(chain(&error)))?;
    let options = KubeConfigOptions::default();
    kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|error| wrong(chain(&error)))
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> AgentError {
    move |source| AgentError::Io { operation, source }
}
