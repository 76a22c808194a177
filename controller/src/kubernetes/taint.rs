//! The startup taint: new nodes may have a taint that keeps pods off until the mesh can capture them. The
//! leading replica removes it when the node's daemon is ready.

use std::collections::BTreeSet;
use std::time::Duration;

use ambit_kube::error::chain;
use ambit_kube::retry::{RequestError, within};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;

/// The taint's key, whatever its effect.
pub(crate) const NOT_READY: &str = "ambit.dev/not-ready";
/// After a failed attempt.
const PAUSE: Duration = Duration::from_secs(2);
/// The deadline of a request.
const DEADLINE: Duration = Duration::from_secs(4);

/// Removes the taint from `nodes` while this replica leads.
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
                    tracing::warn!(node, error = chain(&error), "failed to remove the startup taint");
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

async fn attempt(api: &Api<Node>, name: &str) -> Result<(), RequestError> {
    let Some(node) = within(DEADLINE, api.get_opt(name)).await? else { return Ok(()) };
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let left: Vec<_> = taints.iter().filter(|taint| taint.key != NOT_READY).collect();
    if left.len() == taints.len() {
        return Ok(());
    }
    // The version keeps concurrent changes of other taints: a conflict is tried again.
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "spec": { "taints": left },
    });
    within(DEADLINE, api.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await?;
    tracing::info!(node = name, "startup taint removed; the node's daemon is ready");
    Ok(())
}
