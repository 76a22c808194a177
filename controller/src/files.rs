//! The controller outside Kubernetes: objects from a folder of files, the CA and the tokens' key from the
//! state folder.
//!
//! Entry point: [`serve`].

use std::sync::Arc;

use ambit_daemon_kit::drain::Drain;
use anyhow::Context;

use crate::ca;
use crate::config::{Config, Files};
use crate::frontend::Frontend;
use crate::issue::{Hosted, Nodes};
use crate::objects::reconcile::Reconciler;
use crate::objects::watch::watch;
use crate::pipeline::Pipeline;
use crate::secrets::Secrets;
use crate::state::Folder;

/// In the state folder: where the running controller listens, for configurations with port 0.
const ADDRESSES: &str = "addresses.json";

/// Serves until the drain begins.
pub(crate) async fn serve(
    config: &Config,
    files: &Files,
    frontend: &Frontend,
    drain: &Drain,
) -> anyhow::Result<()> {
    let ready = frontend.readiness.condition("objects");
    let folder = Folder::open(&files.state)?;
    // That of an earlier process would be wrong.
    folder.remove(ADDRESSES)?;
    let Secrets { authority, tokens } = Secrets::open(config, &folder)?;
    let pipeline = Pipeline::new(config.derive.clone(), frontend.publisher.clone(), frontend.shared.clone());
    let mut reconciler = Reconciler::new(files.objects.clone(), folder.path("good"), pipeline)?;
    let reconciler = tokio::task::spawn_blocking(move || reconciler.begin().map(|()| reconciler))
        .await
        .context("failed to read the objects")??;
    let (watching, stop_watching) = watch(reconciler);
    let watching = tokio::task::spawn_blocking(watching);

    let addresses = frontend.addresses()?;
    folder.write_public(ADDRESSES, &serde_json::to_string_pretty(&addresses)?)?;
    let (xds, metrics, admin) = (addresses.xds, addresses.metrics, addresses.admin);
    tracing::info!(%xds, %metrics, %admin, "controller ready");
    ready.met();
    let authenticate = Arc::new(Nodes(tokens));
    let ended = tokio::select! {
        result = frontend.serve(config, ca::only(authority), Hosted::Enrolled, authenticate, drain) => result,
        result = watching => Err(match result {
            Ok(()) => anyhow::anyhow!("the watch of the objects has ended"),
            Err(error) => anyhow::Error::from(error).context("failed to watch the objects"),
        }),
    };
    stop_watching.stop();
    folder.remove(ADDRESSES)?;
    ended
}
