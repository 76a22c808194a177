//! `controller run`: starts the parts, and stops them at SIGTERM.

use std::path::Path;
use std::time::Duration;

use ambit_daemon_kit::drain::Drain;
use ambit_daemon_kit::signals::Shutdown;
use ambit_daemon_kit::telemetry::logs;
use anyhow::Context;

use crate::config::{Config, Source};
use crate::frontend::Frontend;
use crate::{files, kubernetes};

/// How long the admin interface may take to answer open requests.
const ADMIN_STOP: Duration = Duration::from_millis(500);

/// Runs until a termination signal.
pub(crate) fn run(config_file: &Path) -> anyhow::Result<()> {
    let config = Config::read(config_file)?;
    let (logs, _flush) = logs::install(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let result = runtime.block_on(serve(&config, &logs));
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "failed to run the controller");
    }
    runtime.shutdown_timeout(ADMIN_STOP);
    result
}

async fn serve(config: &Config, logs: &logs::Control) -> anyhow::Result<()> {
    let shutdown = Shutdown::install()?;
    let frontend = Frontend::open(config, logs).await?;
    let drain = Drain::new();
    let mut serving = Box::pin(async {
        match &config.source {
            Source::Files(settings) => files::serve(config, settings, &frontend, &drain).await,
            Source::Kubernetes(settings) => kubernetes::serve(config, settings, &frontend, &drain).await,
        }
    });
    let ended = tokio::select! {
        signal = shutdown.drain(&drain) => {
            tracing::info!(signal, "controller stopping");
            tokio::time::timeout(config.drain_timeout, &mut serving).await.unwrap_or(Ok(()))
        }
        result = &mut serving => result.and_then(|()| Err(anyhow::anyhow!("the xDS server has ended"))),
    };
    drop(serving);
    frontend.stop(ADMIN_STOP).await;
    ended
}
