//! What a proxy does beside its connections: following the controller, its certificates and its roots.
//!
//! Entry points: [`follow_controller`], [`follow_status`], [`follow_roots`], [`follow_certificates`].

use std::future::Future;
use std::time::Duration;

use ambit_certificates::Certificates;
use ambit_core::chain;
use ambit_daemon_kit::admin::Condition;
use ambit_daemon_kit::controller::Controller;
use ambit_hbone::pool::{Dial, Pool};
use ambit_xds::client::{Interest, Status};
use tokio::sync::{broadcast, watch};

use crate::controller::ControllerCredentials;
use crate::sync::{Follower, MeshSync};

/// How often the file of roots is read.
const ROOTS_INTERVAL: Duration = Duration::from_secs(5);

/// Applies what the controller sends; does not return.
pub async fn follow_controller<F: Follower>(
    credentials: ControllerCredentials,
    status: watch::Sender<Status>,
    sync: MeshSync<F>,
) {
    follow_controller_for(Interest::Node, credentials, status, sync).await;
}

/// Like [`follow_controller`], with what else this proxy wants: a waypoint its routes.
pub async fn follow_controller_for<F: Follower>(
    interest: Interest,
    credentials: ControllerCredentials,
    status: watch::Sender<Status>,
    mut sync: MeshSync<F>,
) {
    let Err(error) =
        ambit_xds::client::run_for(interest, credentials, status, move |update| sync.apply(update)).await;
    tracing::error!(error = chain(&error), "failed to follow the controller");
}

/// Meets the condition once the first configuration has come. A controller that goes away later does not
/// reset it.
pub async fn follow_status(mut status: watch::Receiver<Status>, synced: Condition) {
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

/// Trusts the controller's roots as they are now; does not return: they are replaced while they rotate.
pub async fn follow_roots(controller: Controller, certificates: Certificates) {
    let mut ticks = tokio::time::interval(ROOTS_INTERVAL);
    loop {
        ticks.tick().await;
        let roots = controller.roots().map_err(ambit_certificates::Error::from);
        match roots.and_then(|roots| certificates.trust(&roots)) {
            Ok(true) => tracing::info!("trusted roots replaced"),
            Ok(false) => {}
            Err(error) => tracing::error!(error = error.chain(), "failed to read roots; earlier ones stay"),
        }
    }
}

/// Has new tunnels opened over connections that were made with the certificate in force; does not return.
pub fn follow_certificates<D: Dial>(
    certificates: &Certificates,
    pool: Pool<D>,
) -> impl Future<Output = ()> + use<D> {
    let mut changes = certificates.changes();
    async move {
        loop {
            match changes.recv().await {
                Ok(identity) => pool.retire_identity(&identity),
                Err(broadcast::error::RecvError::Lagged(_)) => pool.retire_all(),
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}
