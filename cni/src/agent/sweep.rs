//! The last step of an uninstallation: what is left in the API when Ambit's parts are gone, that is
//! annotations on pods and the objects that the controllers created for themselves. The agents remove
//! annotations as long as they have the permission; but an uninstallation revokes it at once, and an agent
//! whose node is down never learns of it.
//!
//! Runs once, with permissions of its own, when nothing else has the permission to write them again.

use std::time::Duration;

use ambit_kube::error::chain;
use ambit_kube::remains::Remains;
use ambit_kube::retry::until_done;
use ambit_kube::{access, annotations};
use kube::Client;

use super::error::{AgentError, io_error};

/// Before the next attempt.
const PAUSE: Duration = Duration::from_secs(1);

/// Removes everything, with new attempts until one succeeds. The Job that runs this has the deadline.
pub fn sweep(remains: &Remains) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io_error("start the runtime"))?;
    runtime.block_on(async {
        let client = Client::try_from(access::config(None).await?).map_err(|source| AgentError::Api {
            operation: "create the API client",
            source: source.into(),
        })?;
        let failed = |error: kube::Error| {
            eprintln!("failed to remove what Ambit left in the API: {}", chain(&error));
            PAUSE
        };
        until_done(async || pass(&client, remains).await, failed).await;
        Ok(())
    })
}

async fn pass(client: &Client, remains: &Remains) -> kube::Result<()> {
    remains.delete(client, |name| println!("{name} deleted")).await?;
    annotations::sweep_all(client, |pods| println!("annotations of {pods} pods to remove")).await
}
