//! `ambit uninstall`: the node daemons first, so that their agents clean the nodes up while they have the
//! permissions; then everything else.

use std::time::Duration;

use ambit_kube::error::is_not_found;
use ambit_kube::remains::Remains;
use ambit_kube::{annotations, object};
use clap::Args;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, ObjectMeta};
use kube::discovery::{ApiGroup, Discovery, Scope, verbs};
use kube::{Client, ResourceExt as _};

use crate::cluster::{Access, CONTROLLER_PODS, SYSTEM, ZTUNNEL_PODS, api_of};
use crate::error::{Error, api};
use crate::manifests::{self, Manifest};
use crate::output::outln;
use crate::wait::{self, Look};
use crate::{facts, install};

/// The objects that the controller creates for itself.
const CA_SECRET: &str = "ambit-ca";
const ROOT_CONFIG_MAP: &str = "ambit-root";
const LEASE: &str = "ambit-controller";

/// How to uninstall.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Delete Ambit's CRDs too, and with them every policy and entry that users wrote.
    #[arg(long)]
    crds: bool,
    /// How long to wait for each step.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

pub(crate) async fn run(access: &Access, options: &Options) -> Result<(), Error> {
    install::ensure_default(access)?;
    let client = access.connect().await?;
    let timeout = Duration::from_secs(options.timeout);
    let mesh = manifests::mesh()?;
    install::refuse_others(&client, "helm uninstall").await?;
    let (daemons, rest) = manifests::uninstall_order(mesh);
    for daemon in &daemons {
        // In the foreground: the DaemonSet stays, marked as being deleted, until its last pod is gone; the
        // agents look at that mark.
        delete(&client, daemon, &DeleteParams::foreground()).await?;
    }
    outln!("Waiting until the nodes are cleaned up")?;
    wait_until_gone(&client, "remove ztunnel from all nodes", &daemons, ZTUNNEL_PODS, timeout).await?;
    outln!("ztunnel is removed from all nodes")?;
    for manifest in &rest {
        delete(&client, manifest, &DeleteParams::background()).await?;
    }
    // A running controller would write again what is deleted next.
    wait_until_gone(&client, "delete the other objects", &rest, CONTROLLER_PODS, timeout).await?;
    outln!("{} objects deleted", daemons.len() + rest.len())?;
    delete_remains(&client).await?;
    delete_namespace(&client, timeout).await?;
    if options.crds {
        delete_crds(&client, timeout).await?;
    }
    outln!("Ambit is uninstalled. Labels of namespaces and pods stay; they have no effect without it")?;
    Ok(())
}

async fn delete(client: &Client, manifest: &Manifest, parameters: &DeleteParams) -> Result<(), Error> {
    let deleted = object::delete(&api_of(client, manifest), manifest.name(), parameters).await;
    deleted.map(drop).map_err(api(format!("delete {}", manifest.title())))
}

/// Waits until the objects, and the pods that the selector matches, are gone.
async fn wait_until_gone(
    client: &Client,
    goal: &'static str,
    manifests: &[Manifest],
    selector: &str,
    timeout: Duration,
) -> Result<(), Error> {
    wait::until(goal, timeout, async || {
        let pods = facts::pods(client, SYSTEM, selector).await?;
        let mut left: Vec<String> = pods.iter().map(terminating).collect();
        for manifest in manifests {
            if facts::get(client, manifest).await?.is_some() {
                left.push(format!("{} is being deleted", manifest.title()));
            }
        }
        Ok(Look::for_missing(left))
    })
    .await
}

fn terminating(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
    format!("pod {} on {node} is terminating", pod.name_any())
}

/// Deletes what the controller created for itself, and the annotations that no agent removed: those of pods
/// on nodes that are down.
async fn delete_remains(client: &Client) -> Result<(), Error> {
    let remains = Remains {
        namespace: SYSTEM.to_owned(),
        secret: CA_SECRET.to_owned(),
        config_map: ROOT_CONFIG_MAP.to_owned(),
        lease: LEASE.to_owned(),
    };
    remains.delete(client, |_| {}).await.map_err(api("delete the objects that the controller created"))?;
    annotations::sweep_all(client, |_| {}).await.map_err(api("remove annotations from pods"))
}

/// Deletes the namespace if `ambit install` created it and it holds nothing of others.
async fn delete_namespace(client: &Client, timeout: Duration) -> Result<(), Error> {
    let Some(manifest) = manifests::mesh()?.into_iter().find(|manifest| manifest.kind() == "Namespace")
    else {
        return Ok(());
    };
    let Some(found) = facts::get(client, &manifest).await? else { return Ok(()) };
    if !manifests::is_ours(&found) {
        outln!("Namespace {SYSTEM} stays: `ambit install` did not create it")?;
        return Ok(());
    }
    let others = others(client).await?;
    if !others.is_empty() {
        outln!("Namespace {SYSTEM} stays: it holds {}", others.join(", "))?;
        return Ok(());
    }
    delete(client, &manifest, &DeleteParams::default()).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    wait::until("delete the namespace", timeout, async || {
        Ok(match namespaces.get_opt(SYSTEM).await.map_err(api("read the namespace"))? {
            None => Look::Reached,
            Some(_) => Look::Missing(vec![format!("Namespace {SYSTEM} is being deleted")]),
        })
    })
    .await?;
    outln!("Namespace {SYSTEM} deleted")?;
    Ok(())
}

/// The objects of others in the namespace, of every kind that the API server has, custom resources included:
/// mesh-wide policies stand there.
async fn others(client: &Client) -> Result<Vec<String>, Error> {
    let discovery =
        Discovery::new(client.clone()).run().await.map_err(api("discover the kinds of the API server"))?;
    let kinds = discovery.groups().flat_map(ApiGroup::recommended_resources);
    let listed =
        kinds.filter(|(_, can)| can.scope == Scope::Namespaced && can.supports_operation(verbs::LIST));
    let mut found = Vec::new();
    for (kind, _) in listed {
        let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), SYSTEM, &kind);
        match objects.list_metadata(&ListParams::default()).await {
            Ok(list) => {
                let others = list.items.iter().filter(|it| is_of_others(&kind.kind, &it.metadata));
                found.extend(others.map(|it| format!("{} {}", kind.kind, it.name_any())));
            }
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(api(format!("list {} in {SYSTEM}", kind.plural))(error)),
        }
    }
    Ok(found)
}

/// Whether an object is of others: neither in every namespace, nor deleted with its owner.
fn is_of_others(kind: &str, object: &ObjectMeta) -> bool {
    let name = object.name.as_deref().unwrap_or_default();
    let in_every_namespace = matches!(
        (kind, name),
        ("ConfigMap", "kube-root-ca.crt") | ("ServiceAccount", "default") | ("Event" | "Endpoints", _)
    );
    let owned = object.owner_references.as_ref().is_some_and(|owners| !owners.is_empty());
    !in_every_namespace && !owned && object.deletion_timestamp.is_none()
}

/// Deletes the CRDs that are Ambit's.
async fn delete_crds(client: &Client, timeout: Duration) -> Result<(), Error> {
    let mut ours = Vec::new();
    for definition in manifests::definitions()? {
        match facts::get(client, &definition).await? {
            Some(found) if manifests::is_ambits(&found) => ours.push(definition),
            Some(_) => outln!("{} was not installed by Ambit: left unchanged", definition.name())?,
            None => {}
        }
    }
    for definition in &ours {
        delete(client, definition, &DeleteParams::default()).await?;
    }
    wait::until("delete the definitions", timeout, async || {
        let mut left = Vec::new();
        for definition in &ours {
            if facts::get(client, definition).await?.is_some() {
                left.push(format!("{} is being deleted", definition.title()));
            }
        }
        Ok(Look::for_missing(left))
    })
    .await?;
    outln!("{} CRDs deleted", ours.len())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: serde_json::Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn objects_of_others_keep_the_namespace() {
        let rows = [
            ("a mesh-wide policy", "PeerAuthentication", json!({"name": "default"}), true),
            ("a Deployment with no pods", "Deployment", json!({"name": "tool"}), true),
            ("the user's own CA", "Secret", json!({"name": "cacerts"}), true),
            ("in every namespace", "ConfigMap", json!({"name": "kube-root-ca.crt"}), false),
            ("the default service account", "ServiceAccount", json!({"name": "default"}), false),
            ("an event", "Event", json!({"name": "x.1"}), false),
            (
                "deleted with its owner",
                "ReplicaSet",
                json!({"name": "tool-1", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment",
                    "name": "tool", "uid": "1"}]}),
                false,
            ),
            (
                "being deleted",
                "Pod",
                json!({"name": "old", "deletionTimestamp": "2026-01-01T00:00:00Z"}),
                false,
            ),
        ];
        for (name, kind, metadata, expected) in rows {
            assert_eq!(is_of_others(kind, &object(metadata)), expected, "{name}");
        }
    }
}
