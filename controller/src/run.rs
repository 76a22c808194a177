//! `controller run`: puts the parts together, and takes them apart at SIGTERM.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_daemon_kit::admin::{Admin, Readiness, Router, Server as HttpServer, logging_routes};
use ambit_daemon_kit::drain::Drain;
use ambit_daemon_kit::signals::Shutdown;
use ambit_daemon_kit::telemetry::logs;
use ambit_daemon_kit::telemetry::metrics::Metrics;
use ambit_xds::Authenticate;
use ambit_xds::server::{Publisher, Server};
use anyhow::Context;
use parking_lot::Mutex;
use tokio::net::TcpListener;

use crate::ca::{self, Authorities, Authority};
use crate::config::{Config, Files, Source};
use crate::issue::{Hosted, Nodes, Signer};
use crate::objects::reconcile::Reconciler;
use crate::objects::watch::watch;
use crate::pipeline::Pipeline;
use crate::serving::Certificate;
use crate::shared::Shared;
use crate::state::Folder;
use crate::token::Tokens;
use crate::{admin, kubernetes, telemetry};

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
    let house = House::open(config, logs).await?;
    let drain = Drain::new();
    let mut serving = Box::pin(async {
        match &config.source {
            Source::Files(files) => serve_files(config, files, &house, &drain).await,
            Source::Kubernetes(settings) => kubernetes::serve(config, settings, &house, &drain).await,
        }
    });
    let ended = tokio::select! {
        signal = shutdown.drain(&drain) => {
            tracing::info!(signal, "controller stops");
            tokio::time::timeout(config.drain_timeout, &mut serving).await.unwrap_or(Ok(()))
        }
        result = &mut serving => result.and_then(|()| Err(anyhow::anyhow!("xDS server: ended by itself"))),
    };
    drop(serving);
    house.admin.stop(ADMIN_STOP).await;
    ended
}

/// What is there whatever the source: the ports, the metrics, the state that servers read.
pub(crate) struct House {
    listener: Mutex<Option<TcpListener>>,
    admin: Admin,
    pub(crate) metrics: Metrics,
    pub(crate) publisher: Publisher,
    pub(crate) shared: Arc<Shared>,
    pub(crate) readiness: Readiness,
}

impl House {
    async fn open(config: &Config, logs: &logs::Control) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.with_context(|| format!("xDS server: listening on {}", config.listen))?;
        let publisher = Publisher::new();
        let shared = Arc::new(Shared::default());
        let readiness = Readiness::new();
        let metrics = Metrics::new("controller");
        metrics.collect_runtime();
        telemetry::show(&metrics, &shared, &publisher);
        let mut servers = vec![
            HttpServer {
                name: "admin",
                address: config.admin,
                router: admin::routes(&shared, &publisher).merge(logging_routes(logs)),
            },
            HttpServer { name: "metrics", address: config.metrics, router: Router::new().metrics(&metrics) },
        ];
        if let Some(address) = config.readiness {
            servers.push(HttpServer { name: "readiness", address, router: readiness.routes() });
        }
        let admin = Admin::start(servers)?;
        Ok(Self { listener: Mutex::new(Some(listener)), admin, metrics, publisher, shared, readiness })
    }

    /// Serves until the drain begins, with certificates of `authorities`. Once.
    pub(crate) async fn serve(
        &self,
        config: &Config,
        authorities: Authorities,
        hosted: Hosted,
        authenticate: Arc<dyn Authenticate>,
        drain: &Drain,
    ) -> anyhow::Result<()> {
        telemetry::show_root(&self.metrics, authorities.clone());
        let certificate = Certificate::new(authorities.clone(), &config.server_name)?;
        let tls = certificate.server_config()?;
        let signer = Signer { authorities, shared: self.shared.clone(), hosted };
        let server = Server { publisher: self.publisher.clone(), authenticate, signer: Arc::new(signer) };
        let listener = self.listener.lock().take().context("xDS server: started twice")?;
        let started = {
            let drain = drain.clone();
            async move { drain.started().await }
        };
        tokio::select! {
            result = server.serve(listener, tls, started) => result.context("xDS server"),
            () = certificate.keep() => Ok(()),
        }
    }

    fn addresses(&self) -> anyhow::Result<Addresses> {
        let listener = self.listener.lock();
        let xds = listener.as_ref().context("xDS server: started already")?.local_addr()?;
        let addresses = self.admin.addresses();
        Ok(Addresses { xds, admin: addresses[0], metrics: addresses[1] })
    }
}

/// From a folder of files, with the CA and the tokens of the state folder.
async fn serve_files(config: &Config, files: &Files, house: &House, drain: &Drain) -> anyhow::Result<()> {
    let ready = house.readiness.condition("objects");
    let folder = Folder::open(&files.state)?;
    // One of an earlier life would mislead.
    folder.remove(ADDRESSES)?;
    let Secrets { authority, tokens } = Secrets::open(config, &folder)?;
    let pipeline = Pipeline::new(config.derive.clone(), house.publisher.clone(), house.shared.clone());
    let mut reconciler = Reconciler::new(files.objects.clone(), folder.path("good"), pipeline)?;
    let reconciler = tokio::task::spawn_blocking(move || reconciler.begin().map(|()| reconciler))
        .await
        .context("reading objects")??;
    let (watching, stop_watching) = watch(reconciler);
    let watching = tokio::task::spawn_blocking(watching);

    let addresses = house.addresses()?;
    folder.write_public(ADDRESSES, &serde_json::to_string_pretty(&addresses)?)?;
    tracing::info!(xds = %addresses.xds, metrics = %addresses.metrics, admin = %addresses.admin, "controller runs");
    ready.met();
    let ended = tokio::select! {
        result = house.serve(config, ca::only(authority), Hosted::Enrolled, Arc::new(Nodes(tokens)), drain) => result,
        result = watching => Err(match result {
            Ok(()) => anyhow::anyhow!("watching the objects: ended by itself"),
            Err(error) => anyhow::Error::from(error).context("watching the objects"),
        }),
    };
    stop_watching.stop();
    folder.remove(ADDRESSES)?;
    ended
}

#[derive(serde::Serialize)]
struct Addresses {
    xds: SocketAddr,
    metrics: SocketAddr,
    admin: SocketAddr,
}
