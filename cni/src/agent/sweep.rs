//! What an installation leaves in the API when its parts are gone: annotations on pods, and the objects that
//! the controllers made for themselves. The agents take annotations off as long as they may; but who
//! uninstalls takes their rights away at once, and an agent whose node is off never learns of it.
//!
//! Runs once, with rights of its own, when nobody else has the right to put anything back.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};

use super::{AgentError, cluster, failed, kube_config};
use crate::chain;

/// Before trying again what failed.
const PAUSE: Duration = Duration::from_secs(1);

/// What the controllers made.
#[derive(Clone, Debug)]
pub struct Remains {
    pub namespace: String,
    pub secret: String,
    pub config_map: String,
    pub lease: String,
}

/// Removes everything; tries again until that works. Whoever started it says how long that may take.
pub fn sweep(remains: &Remains) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("starting the runtime"))?;
    runtime.block_on(async {
        let client = Client::try_from(kube_config(None).await?)
            .map_err(|source| AgentError::Api { operation: "preparing to reach the API server", source })?;
        while let Err(error) = pass(&client, remains).await {
            eprintln!("sweeping: {}", chain(&error));
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    })
}

async fn pass(client: &Client, remains: &Remains) -> kube::Result<()> {
    // First what is a secret: nobody uses it any more.
    delete::<Secret>(client, &remains.namespace, &remains.secret).await?;
    delete::<ConfigMap>(client, &remains.namespace, &remains.config_map).await?;
    delete::<Lease>(client, &remains.namespace, &remains.lease).await?;
    // A request of the last agent may have been under way: gone is what a whole list does not show.
    loop {
        let pods = cluster::forget(client, &ListParams::default()).await?;
        println!("annotations of {pods} pods to take off");
        if pods == 0 {
            return Ok(());
        }
    }
}

async fn delete<K>(client: &Client, namespace: &str, name: &str) -> kube::Result<()>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => println!("{name} deleted"),
        Err(error) if cluster::is_gone(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
