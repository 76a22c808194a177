//! `ambit uninstall`: the daemons first, so that their agents clean their nodes while they have the rights;
//! then the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use ambit_core::enrolment::{self, FIELD_MANAGER, NOT_CAPTURED, REDIRECTION};
use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams};
use kube::discovery::{ApiGroup, Discovery, Scope, verbs};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use crate::cluster::{Access, CONTROLLER_PODS, SYSTEM, ZTUNNEL_PODS, part};
use crate::error::{Error, api, is_absent};
use crate::manifests::{self, Manifest};
use crate::wait::{self, Look};
use crate::{facts, install};

/// What the controller makes for itself.
const AUTHORITY: &str = "ambit-ca";
const TRUST: &str = "ambit-root";
const LEASE: &str = "ambit-controller";

/// How many pods one answer holds.
const PAGE: u32 = 500;

/// How to uninstall.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Delete Ambit's definitions too, and with them every policy and entry that users wrote.
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
    let (daemons, rest) = manifests::leaving(mesh);
    for daemon in &daemons {
        // In the foreground: it says of itself that it is being deleted until its last pod is gone, and
        // agents ask.
        delete(&client, daemon, &DeleteParams::foreground()).await?;
    }
    say!("Waiting until the nodes are cleaned")?;
    gone(&client, "off all nodes", &daemons, ZTUNNEL_PODS, timeout).await?;
    say!("ztunnel is off all nodes")?;
    for manifest in &rest {
        delete(&client, manifest, &DeleteParams::background()).await?;
    }
    // It would write again what is deleted next.
    gone(&client, "ended", &rest, CONTROLLER_PODS, timeout).await?;
    say!("{} objects deleted", daemons.len() + rest.len())?;
    forget(&client).await?;
    unmark(&client).await?;
    leave_namespace(&client, timeout).await?;
    if options.crds {
        undefine(&client, timeout).await?;
    }
    say!("Ambit is gone. Labels of namespaces and pods stay, and mean nothing without it")?;
    Ok(())
}

async fn delete(client: &Client, manifest: &Manifest, parameters: &DeleteParams) -> Result<(), Error> {
    match part(client, manifest).delete(manifest.name(), parameters).await {
        Ok(_) => Ok(()),
        Err(error) if is_absent(&error) => Ok(()),
        Err(error) => Err(api(format!("deleting {}", manifest.title()))(error)),
    }
}

/// Waits until objects and pods are no more.
async fn gone(
    client: &Client,
    goal: &'static str,
    manifests: &[Manifest],
    selector: &str,
    timeout: Duration,
) -> Result<(), Error> {
    wait::until(goal, timeout, async || {
        let pods = facts::pods(client, SYSTEM, selector).await?;
        let mut left: Vec<String> = pods.iter().map(ending).collect();
        for manifest in manifests {
            if facts::get(client, manifest).await?.is_some() {
                left.push(format!("{} is being deleted", manifest.title()));
            }
        }
        Ok(if left.is_empty() { Look::Reached } else { Look::Missing(left) })
    })
    .await
}

fn ending(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
    format!("pod {} on {node} is ending", pod.name_any())
}

/// What the controller made for itself.
async fn forget(client: &Client) -> Result<(), Error> {
    let parameters = DeleteParams::default();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), SYSTEM);
    let leases: Api<Lease> = Api::namespaced(client.clone(), SYSTEM);
    let deleted = [
        secrets.delete(AUTHORITY, &parameters).await.map(drop),
        config_maps.delete(TRUST, &parameters).await.map(drop),
        leases.delete(LEASE, &parameters).await.map(drop),
    ];
    for deleted in deleted {
        if let Err(error) = deleted
            && !is_absent(&error)
        {
            return Err(api("deleting what the controller made")(error));
        }
    }
    Ok(())
}

/// Takes the annotations off that no agent took off: those of nodes that are off. Again until a whole list
/// shows none.
async fn unmark(client: &Client) -> Result<(), Error> {
    while unmark_once(client).await? > 0 {}
    Ok(())
}

/// On how many pods there were some.
async fn unmark_once(client: &Client) -> Result<usize, Error> {
    let nothing: BTreeMap<&str, Option<&str>> = [(REDIRECTION, None), (NOT_CAPTURED, None)].into();
    let named = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let mut page = ListParams::default().limit(PAGE);
    let mut found = 0;
    loop {
        let pods = Api::<Pod>::all(client.clone()).list_metadata(&page).await.map_err(api("listing pods"))?;
        for pod in pods.items.iter().filter(|pod| is_annotated(&pod.metadata)) {
            found += 1;
            let there: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            // That pod and no other of its name: the API server compares.
            let patch = json!({ "metadata": { "uid": pod.uid(), "annotations": nothing } });
            match there.patch_metadata(&pod.name_any(), &named, &Patch::Merge(patch)).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(api("taking annotations off pods")(error)),
            }
        }
        match pods.metadata.continue_ {
            Some(token) if !token.is_empty() => page.continue_token = Some(token),
            _ => return Ok(found),
        }
    }
}

/// By Ambit: other meshes use one of the names too.
fn is_annotated(pod: &ObjectMeta) -> bool {
    let managers = pod.managed_fields.iter().flatten().filter_map(|entry| entry.manager.as_deref());
    enrolment::wrote(pod.annotations.as_ref(), managers)
}

/// Deletes the namespace that `ambit install` made, if nobody else keeps something in it.
async fn leave_namespace(client: &Client, timeout: Duration) -> Result<(), Error> {
    let Some(manifest) = manifests::mesh()?.into_iter().find(|manifest| manifest.kind() == "Namespace")
    else {
        return Ok(());
    };
    let Some(there) = facts::get(client, &manifest).await? else { return Ok(()) };
    if !manifests::is_ours(&there) {
        say!("Namespace {SYSTEM} stays: `ambit install` found it there")?;
        return Ok(());
    }
    let others = others(client).await?;
    if !others.is_empty() {
        say!("Namespace {SYSTEM} stays: it holds {}", others.join(", "))?;
        return Ok(());
    }
    delete(client, &manifest, &DeleteParams::default()).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    wait::until("deleted", timeout, async || {
        Ok(match namespaces.get_opt(SYSTEM).await.map_err(api("reading the namespace"))? {
            None => Look::Reached,
            Some(_) => Look::Missing(vec![format!("Namespace {SYSTEM} is being deleted")]),
        })
    })
    .await?;
    say!("Namespace {SYSTEM} deleted")?;
    Ok(())
}

/// What is in the namespace, and was not put there by Ambit: of every kind that the API server has,
/// definitions' too. Mesh-wide policies live there.
async fn others(client: &Client) -> Result<Vec<String>, Error> {
    let discovery =
        Discovery::new(client.clone()).run().await.map_err(api("asking which kinds there are"))?;
    let kinds = discovery.groups().flat_map(ApiGroup::recommended_resources);
    let listed =
        kinds.filter(|(_, can)| can.scope == Scope::Namespaced && can.supports_operation(verbs::LIST));
    let mut found = Vec::new();
    for (kind, _) in listed {
        let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), SYSTEM, &kind);
        match objects.list_metadata(&ListParams::default()).await {
            Ok(list) => {
                let others = list.items.iter().filter(|it| is_somebodys(&kind.kind, &it.metadata));
                found.extend(others.map(|it| format!("{} {}", kind.kind, it.name_any())));
            }
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(api(format!("listing {} of {SYSTEM}", kind.plural))(error)),
        }
    }
    Ok(found)
}

/// Whether somebody would miss an object: not what every namespace has, nor what goes with its owner.
fn is_somebodys(kind: &str, object: &ObjectMeta) -> bool {
    let name = object.name.as_deref().unwrap_or_default();
    let everywhere = matches!(
        (kind, name),
        ("ConfigMap", "kube-root-ca.crt") | ("ServiceAccount", "default") | ("Event" | "Endpoints", _)
    );
    let owned = object.owner_references.as_ref().is_some_and(|owners| !owners.is_empty());
    !everywhere && !owned && object.deletion_timestamp.is_none()
}

/// Deletes the definitions that are Ambit's.
async fn undefine(client: &Client, timeout: Duration) -> Result<(), Error> {
    let mut ours = Vec::new();
    for definition in manifests::definitions()? {
        match facts::get(client, &definition).await? {
            Some(there) if manifests::is_ambits(&there) => ours.push(definition),
            Some(_) => say!("{} is somebody else's: left as it is", definition.name())?,
            None => {}
        }
    }
    for definition in &ours {
        delete(client, definition, &DeleteParams::default()).await?;
    }
    wait::until("deleted", timeout, async || {
        let mut left = Vec::new();
        for definition in &ours {
            if facts::get(client, definition).await?.is_some() {
                left.push(format!("{} is being deleted", definition.title()));
            }
        }
        Ok(if left.is_empty() { Look::Reached } else { Look::Missing(left) })
    })
    .await?;
    say!("{} definitions deleted", ours.len())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: serde_json::Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_keeps_the_namespace() {
        let rows = [
            ("a mesh-wide policy", "PeerAuthentication", json!({"name": "default"}), true),
            ("a Deployment with no pods", "Deployment", json!({"name": "tool"}), true),
            ("the user's own CA", "Secret", json!({"name": "cacerts"}), true),
            ("what every namespace has", "ConfigMap", json!({"name": "kube-root-ca.crt"}), false),
            ("its account", "ServiceAccount", json!({"name": "default"}), false),
            ("an event", "Event", json!({"name": "x.1"}), false),
            (
                "what goes with its owner",
                "ReplicaSet",
                json!({"name": "tool-1", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "tool", "uid": "1"}]}),
                false,
            ),
            (
                "what is going",
                "Pod",
                json!({"name": "old", "deletionTimestamp": "2026-01-01T00:00:00Z"}),
                false,
            ),
        ];
        for (name, kind, metadata, expected) in rows {
            assert_eq!(is_somebodys(kind, &object(metadata)), expected, "{name}");
        }
    }
}
