//! The controller in a Kubernetes cluster: objects from the API, daemons authenticated by their
//! service-account tokens, the CA's keys in a Secret.
//!
//! [`watch`] lists and watches each kind ([`item`]: one object) in the version that is served
//! ([`discovery`]), [`inventory`] turns that into object events (pure), [`follow`] passes those to the
//! pipeline. [`review`] authenticates clients, with [`daemons`]; [`keeper`] keeps the CA. Only the leading
//! replica ([`lease`]) rotates the CA, writes conditions ([`status`]), removes startup taints ([`taint`]) and
//! makes waypoints ([`provision`]).
//!
//! Entry point: [`serve`].

mod daemons;
mod discovery;
#[cfg(test)]
mod fake_api;
mod follow;
mod inventory;
mod item;
mod keeper;
mod lease;
mod provision;
mod review;
mod standing;
mod status;
mod taint;
mod token;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ambit_daemon_kit::drain::Drain;
use ambit_kube::access;
use anyhow::Context;
use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::daemons::Daemons;
use self::follow::Follower;
use self::inventory::Inventory;
use self::keeper::Keeper;
use self::provision::{Provisioning, Wanted};
use self::review::Reviewer;
use self::status::Statuses;
use crate::config::Config;
use crate::config::kubernetes::Settings;
use crate::frontend::Frontend;
use crate::issue::Hosted;
use crate::pipeline::Pipeline;

/// The capacity of the channel between the watches and the follower.
const CHANNEL: usize = 1_024;
/// The deadline of a connection to the API server.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Serves until the drain begins.
pub(crate) async fn serve(
    config: &Config,
    settings: &Settings,
    frontend: &Frontend,
    drain: &Drain,
) -> anyhow::Result<()> {
    let (ca_ready, objects_ready) =
        (frontend.readiness.condition("ca"), frontend.readiness.condition("objects"));
    let client = connect(settings).await?;
    let daemons = Arc::new(Daemons::new(&settings.namespace, &settings.ztunnel_service_account));
    let mut derive = config.derive.clone();
    derive.enrolled_by_annotation = true;
    derive.identity_by_account = true;
    derive.system_namespace.clone_from(&settings.namespace);

    let statuses = Arc::new(Statuses::default());
    let (untaintable, to_untaint) = tokio::sync::watch::channel(BTreeSet::new());
    let (wanted, to_provision) = Wanted::new();
    let (sender, events) = mpsc::channel(CHANNEL);
    let watches = watch::start(&client, &sender);
    drop(sender);
    let follower = Follower {
        inventory: Inventory::new(),
        pipeline: Pipeline::new(derive.clone(), frontend.publisher.clone(), frontend.shared.clone()),
        daemons: daemons.clone(),
        statuses: statuses.clone(),
        wanted,
        untaintable,
        tainted: BTreeMap::new(),
        ready: objects_ready,
    };
    let following = tokio::spawn(follower.run(events));

    let opened = tokio::select! {
        opened = Keeper::open(client.clone(), config, settings, &ca_ready) => opened,
        () = drain.started() => return Ok(()),
    };
    let (keeper, authorities) = opened;
    ca_ready.met();
    let (leading, leads) = tokio::sync::watch::channel(false);
    let reachable = frontend.readiness.condition("api_server");
    let stop = {
        let drain = drain.clone();
        async move { drain.started().await }
    };
    let holding = tokio::spawn(lease::hold(client.clone(), settings.clone(), leading, reachable, stop));
    let keeping = tokio::spawn(keeper.keep(leads.clone()));
    let mut tasks = JoinSet::new();
    tasks.spawn(status::write(client.clone(), statuses, leads.clone()));
    tasks.spawn(taint::remove(client.clone(), to_untaint, leads.clone()));
    if let Some(image) = settings.waypoint.clone() {
        let provisioning = Provisioning { image, cluster: derive.cluster.clone() };
        tasks.spawn(provision::keep(client.clone(), settings.clone(), provisioning, to_provision, leads));
    }

    let reviewer = Reviewer::new(client, settings, &derive, daemons, frontend.shared.clone());
    let ended = tokio::select! {
        result = frontend.serve(config, authorities, Hosted::All, Arc::new(reviewer), drain) => result,
        result = following => result.context("failed to follow the API")
            .and_then(|()| Err(anyhow::anyhow!("the watches of the API have ended"))),
        result = keeping => result.context("failed to keep the CA"),
    };
    drop((watches, tasks));
    if drain.is_started() {
        holding.await.context("failed to release the lease")?;
    }
    ended
}

async fn connect(settings: &Settings) -> anyhow::Result<Client> {
    let mut config = access::config(settings.kubeconfig.as_deref()).await?;
    config.connect_timeout = Some(CONNECT_DEADLINE);
    Client::try_from(config).context("failed to create the API client")
}
