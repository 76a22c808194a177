//! The controller in a cluster: objects from the API, daemons known by their service-account tokens, the CA's
//! keys in a Secret.
//!
//! [`watch`] hears what the API says of each kind ([`item`]: one object), [`inventory`] makes object events of it (pure),
//! [`follow`] hands those to the pipeline. [`review`] tells who calls, with [`daemons`]; [`keeper`] keeps the
//! CA. What only one replica does ([`lease`]): rotating the CA, statuses ([`status`]), startup taints
//! ([`taint`]).
//!
//! Way in: [`serve`].

mod daemons;
mod follow;
mod inventory;
mod item;
mod keeper;
mod lease;
mod review;
mod status;
mod taint;
mod token;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ambit_daemon_kit::drain::Drain;
use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config as Access};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::daemons::Daemons;
use self::follow::Follower;
use self::inventory::Inventory;
use self::keeper::Keeper;
use self::review::Reviewer;
use self::status::Statuses;
use crate::config::Config;
use crate::config::kubernetes::Settings;
use crate::issue::Hosted;
use crate::pipeline::Pipeline;
use crate::run::House;

/// Between the watches and who takes in what they say.
const HEARD: usize = 1_024;
/// For a connection to the API server.
const CONNECT: Duration = Duration::from_secs(5);

/// Serves until the drain begins.
pub(crate) async fn serve(
    config: &Config,
    settings: &Settings,
    house: &House,
    drain: &Drain,
) -> anyhow::Result<()> {
    let (ca_ready, objects_ready) = (house.readiness.condition("ca"), house.readiness.condition("objects"));
    let client = connect(settings).await.context("finding the API server")?;
    let daemons = Arc::new(Daemons::new(&settings.namespace, &settings.ztunnel_service_account));
    let mut derive = config.derive.clone();
    derive.enrolled_by_annotation = true;
    derive.system_namespace.clone_from(&settings.namespace);

    let statuses = Arc::new(Statuses::default());
    let (startable, started) = tokio::sync::watch::channel(BTreeSet::new());
    let (sender, heard) = mpsc::channel(HEARD);
    let watches = watch::start(&client, &sender);
    drop(sender);
    let follower = Follower {
        inventory: Inventory::new(),
        pipeline: Pipeline::new(derive, house.publisher.clone(), house.shared.clone()),
        daemons: daemons.clone(),
        statuses: statuses.clone(),
        startable,
        tainted: BTreeSet::new(),
        ready: objects_ready,
    };
    let following = tokio::spawn(follower.run(heard));

    let opened = tokio::select! {
        opened = Keeper::open(client.clone(), config, settings, &ca_ready) => opened,
        () = drain.started() => return Ok(()),
    };
    let (keeper, authorities) = opened;
    ca_ready.met();
    let (leads, led) = tokio::sync::watch::channel(false);
    let stop = {
        let drain = drain.clone();
        async move { drain.started().await }
    };
    let holding = tokio::spawn(lease::hold(client.clone(), settings.clone(), leads, stop));
    let keeping = tokio::spawn(keeper.keep(led.clone()));
    let mut chores = JoinSet::new();
    chores.spawn(status::write(client.clone(), statuses, led.clone()));
    chores.spawn(taint::remove(client.clone(), started, led));

    let reviewer = Reviewer::new(client, settings, daemons);
    let ended = tokio::select! {
        result = house.serve(config, authorities, Hosted::All, Arc::new(reviewer), drain) => result,
        result = following => result.context("following the API").and_then(|()| Err(anyhow::anyhow!("following the API: ended by itself"))),
        result = keeping => result.context("keeping the CA"),
    };
    drop((watches, chores));
    if drain.is_started() {
        holding.await.context("giving the lease back")?;
    }
    ended
}

async fn connect(settings: &Settings) -> anyhow::Result<Client> {
    let mut access = match &settings.kubeconfig {
        None => Access::incluster()?,
        Some(path) => {
            let options = KubeConfigOptions::default();
            Access::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?
        }
    };
    access.connect_timeout = Some(CONNECT);
    Ok(Client::try_from(access)?)
}
