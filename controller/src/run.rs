//! `controller run`: puts the parts together, and takes them apart at SIGTERM.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_runtime::admin::{Admin, Router, Server as HttpServer, logging_routes};
use ambit_runtime::drain::Drain;
use ambit_runtime::signals::Shutdown;
use ambit_runtime::telemetry::logs;
use ambit_runtime::telemetry::metrics::Metrics;
use ambit_xds::server::{Publisher, Server};
use anyhow::Context;
use tokio::net::TcpListener;

use crate::admin;
use crate::ca::Authority;
use crate::config::Config;
use crate::issue::{Nodes, Signer};
use crate::objects::reconcile::Reconciler;
use crate::objects::watch::watch;
use crate::serving::Certificate;
use crate::shared::Shared;
use crate::state::Folder;
use crate::telemetry;
use crate::token::Tokens;

/// Where the running controller listens, for those who let it choose its ports.
const ADDRESSES: &str = "addresses.json";
/// The admin server's last answers.
const ADMIN_STOP: Duration = Duration::from_millis(500);

/// The secrets, made the first time.
pub(crate) struct Secrets {
    pub(crate) authority: Authority,
    pub(crate) tokens: Tokens,
}

impl Secrets {
    pub(crate) fn open(config: &Config, folder: &Folder) -> anyhow::Result<Self> {
        let _lock = folder.lock()?;
        let trust_domain = &config.derive.trust_domain;
        let authority = Authority::open(folder, trust_domain, config.max_certificate_ttl, SystemTime::now())?;
        Ok(Self { authority, tokens: Tokens::open(folder)? })
    }
}

/// Runs until a signal ends it.
pub(crate) fn run(config_file: &Path) -> anyhow::Result<()> {
    let config = Config::read(config_file)?;
    let (logs, _flush) = logs::install(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(serve(&config, &logs));
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "the controller ends");
    }
    runtime.shutdown_timeout(ADMIN_STOP);
    result
}

async fn serve(config: &Config, logs: &logs::Control) -> anyhow::Result<()> {
    let shutdown = Shutdown::install()?;
    let folder = Folder::open(&config.state)?;
    // One of an earlier life would mislead.
    folder.remove(ADDRESSES)?;
    let Secrets { authority, tokens } = Secrets::open(config, &folder)?;
    let authority = Arc::new(authority);
    let certificate = Certificate::new(authority.clone(), &config.server_name)?;

    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.with_context(|| format!("xDS server: listening on {}", config.listen))?;
    let publisher = Publisher::new();
    let shared = Arc::new(Shared::default());
    let metrics = Metrics::new("controller");
    metrics.collect_runtime();
    telemetry::show(&metrics, &authority, &shared, &publisher);
    let mut reconciler = Reconciler::new(
        config.objects.clone(),
        folder.path("good"),
        config.derive.clone(),
        publisher.clone(),
        shared.clone(),
    )?;
    let admin = Admin::start(vec![
        HttpServer {
            name: "admin",
            address: config.admin,
            router: admin::routes(&shared, &publisher).merge(logging_routes(logs)),
        },
        HttpServer { name: "metrics", address: config.metrics, router: Router::new().metrics(&metrics) },
    ])?;
    let reconciler = tokio::task::spawn_blocking(move || reconciler.begin().map(|()| reconciler))
        .await
        .context("reading objects")??;
    let (watching, stop_watching) = watch(reconciler);
    let watching = tokio::task::spawn_blocking(watching);

    let server = Server {
        publisher,
        authenticate: Arc::new(Nodes(tokens)),
        signer: Arc::new(Signer { authority, shared }),
    };
    let addresses =
        Addresses { xds: listener.local_addr()?, admin: admin.addresses()[0], metrics: admin.addresses()[1] };
    folder.write_public(ADDRESSES, &serde_json::to_string_pretty(&addresses)?)?;
    tracing::info!(xds = %addresses.xds, metrics = %addresses.metrics, admin = %addresses.admin, "controller runs");

    let drain = Drain::new();
    let tls = certificate.server_config()?;
    let serving = server.serve(listener, tls, {
        let drain = drain.clone();
        async move { drain.started().await }
    });
    tokio::pin!(serving);
    let ended = tokio::select! {
        signal = shutdown.drain(&drain) => {
            tracing::info!(signal, "controller stops");
            tokio::time::timeout(config.drain_timeout, &mut serving).await.unwrap_or(Ok(())).context("xDS server")
        }
        result = &mut serving => result.context("xDS server").and_then(|()| Err(anyhow::anyhow!("xDS server: ended by itself"))),
        result = watching => Err(match result {
            Ok(()) => anyhow::anyhow!("watching the objects: ended by itself"),
            Err(error) => anyhow::Error::from(error).context("watching the objects"),
        }),
        () = certificate.keep() => Ok(()),
    };
    stop_watching.stop();
    admin.stop(ADMIN_STOP).await;
    folder.remove(ADDRESSES)?;
    ended
}

#[derive(serde::Serialize)]
struct Addresses {
    xds: SocketAddr,
    metrics: SocketAddr,
    admin: SocketAddr,
}
