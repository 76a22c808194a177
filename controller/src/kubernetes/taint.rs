//! New nodes begin with a taint that keeps pods off them: they would run outside the mesh. The replica that
//! leads takes it away when the node's daemon is ready.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;

/// The taint's key, whatever its effect.
pub(crate) const NOT_READY: &str = "ambit.dev/not-ready";
/// After an attempt that failed.
const PAUSE: Duration = Duration::from_secs(2);

/// Removes the taint from the nodes named, while it leads.
pub(crate) async fn remove(
    client: Client,
    mut nodes: watch::Receiver<BTreeSet<String>>,
    mut leads: watch::Receiver<bool>,
) {
    let api: Api<Node> = Api::all(client);
    loop {
        let due: Vec<String> = nodes.borrow_and_update().iter().cloned().collect();
        let mut failed = false;
        if *leads.borrow_and_update() {
            for node in due {
                if let Err(error) = attempt(&api, &node).await {
                    tracing::warn!(node, error = %crate::error_chain(&error), "the taint cannot be removed");
                    failed = true;
                }
            }
        }
        tokio::select! {
            changed = nodes.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PAUSE), if failed => {}
        }
    }
}

async fn attempt(api: &Api<Node>, name: &str) -> Result<(), kube::Error> {
    let Some(node) = api.get_opt(name).await? else { return Ok(()) };
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let left: Vec<_> = taints.iter().filter(|taint| taint.key != NOT_READY).collect();
    if left.len() == taints.len() {
        return Ok(());
    }
    // The version makes sure that nobody else's taint is lost; who comes in between is asked again.
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "spec": { "taints": left },
    });
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    tracing::info!(node = name, "the node's daemon is ready: its startup taint is gone");
    Ok(())
}
