//! Waypoints for Gateways of the class `ambit-waypoint`: the leading replica applies a Deployment, a Service
//! and what they need for each ([`objects`]: which, pure). They belong to the Gateway and are deleted with
//! it.
//!
//! Entry point: [`keep`], told by [`Wanted`].

mod objects;
mod parameters;

use std::collections::BTreeMap;
use std::time::Duration;

use ambit_core::derive::{Object, ObjectKey, Statement, WAYPOINT_CLASS};
use ambit_kube::error::chain;
use ambit_kube::retry::{RequestError, within};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;

pub(crate) use self::objects::Provisioning;
use self::objects::Waypoint;
use self::parameters::Parameters;
use super::item::{self, Item, Seen};
use super::keeper::BUNDLE;
use super::standing::{CONTROLLER_NAME, Present, written};
use super::status::in_seconds;
use crate::config::kubernetes::Settings;

/// Who applies, for the API server's record of who owns which field.
const MANAGER: &str = "ambit-waypoints";
/// Everything is applied again after this time: a root or a ConfigMap may have changed, or somebody may have
/// changed what was applied.
const AGAIN: Duration = Duration::from_secs(30);
/// After a failed attempt.
const PAUSE: Duration = Duration::from_secs(2);
/// The deadline of a request.
const DEADLINE: Duration = Duration::from_secs(5);

/// A Gateway by its namespace and name.
type Name = (String, String);

/// Why a waypoint was not provisioned.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to {operation}")]
    Request { operation: String, source: RequestError },
    #[error("spec.infrastructure.parametersRef: {0}")]
    Parameters(String),
    #[error("ConfigMap {0} has no roots yet")]
    NoRoots(String),
    #[error("{0} is there and does not belong to this Gateway")]
    Taken(String),
}

/// The Gateways that want a waypoint, and the version of each that was seen last.
#[derive(Debug)]
pub(crate) struct Wanted {
    gateways: watch::Sender<BTreeMap<Name, i64>>,
}

impl Wanted {
    pub(crate) fn new() -> (Self, watch::Receiver<BTreeMap<Name, i64>>) {
        let (gateways, wanted) = watch::channel(BTreeMap::new());
        (Self { gateways }, wanted)
    }

    /// An object was listed or has changed.
    pub(crate) fn seen(&self, seen: &Seen) {
        let Ok(object) = &seen.read else { return };
        let Object::Gateway(gateway) = &**object else { return };
        let name = (seen.key.namespace.clone(), seen.key.name.clone());
        self.gateways.send_if_modified(|known| {
            if gateway.class == WAYPOINT_CLASS {
                known.insert(name, seen.generation) != Some(seen.generation)
            } else {
                known.remove(&name).is_some()
            }
        });
    }

    /// An object is gone.
    pub(crate) fn gone(&self, key: &ObjectKey) {
        let name = (key.namespace.clone(), key.name.clone());
        self.gateways.send_if_modified(|known| known.remove(&name).is_some());
    }
}

/// Applies what Gateways want, while this replica leads.
pub(crate) async fn keep(
    client: Client,
    settings: Settings,
    provisioning: Provisioning,
    mut wanted: watch::Receiver<BTreeMap<Name, i64>>,
    mut leads: watch::Receiver<bool>,
) {
    let provisioner = Provisioner { client, settings, provisioning };
    // What was applied, and the version of the Gateway it was applied for.
    let mut done: BTreeMap<Name, i64> = BTreeMap::new();
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let due = wanted.borrow_and_update().clone();
        let mut failed = false;
        if *leads.borrow_and_update() {
            if done.is_empty() && !due.is_empty() {
                failed |=
                    provisioner.class().await.inspect_err(report("GatewayClass", WAYPOINT_CLASS)).is_err();
            }
            for ((namespace, name), generation) in &due {
                let key = (namespace.clone(), name.clone());
                if done.get(&key) == Some(generation) {
                    continue;
                }
                let result = provisioner.provision(namespace, name).await;
                match result.inspect_err(report(namespace, name)) {
                    // What somebody has to change is looked at again with everything else.
                    Ok(()) | Err(Error::Parameters(_) | Error::Taken(_)) => {
                        done.insert(key, *generation);
                    }
                    Err(Error::Request { .. } | Error::NoRoots(_)) => failed = true,
                }
            }
            done.retain(|key, _| due.contains_key(key));
        } else {
            done.clear();
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
            _ = again.tick() => done.clear(),
            () = tokio::time::sleep(PAUSE), if failed => {}
        }
    }
}

fn report(namespace: &str, name: &str) -> impl FnOnce(&Error) {
    let object = format!("{namespace}/{name}");
    move |error| tracing::error!(gateway = object, error = chain(error), "failed to provision a waypoint")
}

struct Provisioner {
    client: Client,
    settings: Settings,
    provisioning: Provisioning,
}

impl Provisioner {
    async fn provision(&self, namespace: &str, name: &str) -> Result<(), Error> {
        let resource = ApiResource::erase::<Item<item::Gateway>>(&"v1");
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let gateway = request(format!("read Gateway {namespace}/{name}"), api.get_opt(name)).await?;
        let Some(gateway) = gateway else { return Ok(()) };
        let provisioned = self.apply_all(namespace, name, &gateway).await;
        say(&api, &resource, &gateway, outcome(&provisioned)).await?;
        provisioned
    }

    async fn apply_all(&self, namespace: &str, name: &str, gateway: &DynamicObject) -> Result<(), Error> {
        let roots: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let map = &self.settings.root_config_map;
        let found = request(format!("read ConfigMap {map}"), roots.get_opt(map)).await?;
        let roots = found.and_then(|found| found.data?.remove(BUNDLE)).filter(|roots| !roots.is_empty());
        let roots = roots.ok_or_else(|| Error::NoRoots(map.clone()))?;
        let parameters = self.parameters(namespace, gateway).await?;
        let waypoint = Waypoint {
            namespace,
            name,
            uid: gateway.metadata.uid.as_deref().unwrap_or_default(),
            infrastructure: &gateway.data["spec"]["infrastructure"],
            roots: &roots,
            parameters: &parameters,
        };
        for object in self.provisioning.objects(&self.settings, &waypoint) {
            self.apply(&waypoint, &object).await?;
        }
        Ok(())
    }

    /// What the ConfigMap says that the Gateway names.
    async fn parameters(&self, namespace: &str, gateway: &DynamicObject) -> Result<Parameters, Error> {
        let reference = &gateway.data["spec"]["infrastructure"]["parametersRef"];
        if reference.is_null() {
            return Ok(Parameters::default());
        }
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        if !text("group").is_empty() || text("kind") != "ConfigMap" {
            let message = format!("{}/{} is not a ConfigMap", text("group"), text("kind"));
            return Err(Error::Parameters(message));
        }
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let name = text("name");
        let found = request(format!("read ConfigMap {namespace}/{name}"), maps.get_opt(name)).await?;
        let found =
            found.ok_or_else(|| Error::Parameters(format!("there is no ConfigMap {namespace}/{name}")))?;
        Parameters::read(&found.data.unwrap_or_default())
            .map_err(|error| Error::Parameters(format!("ConfigMap {namespace}/{name}: {error}")))
    }

    async fn apply(&self, of: &Waypoint<'_>, object: &Value) -> Result<(), Error> {
        let namespace = of.namespace;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let name = text(&object["metadata"]["name"]);
        let title = format!("{kind} {namespace}/{name}");
        let present = request(format!("read {title}"), api.get_opt(&name)).await?;
        let is_ours = |present: &DynamicObject| {
            present.metadata.owner_references.iter().flatten().any(|owner| owner.uid == of.uid)
        };
        // A Service of the user's that has the Gateway's name, say.
        if present.is_some_and(|present| !is_ours(&present)) {
            return Err(Error::Taken(title));
        }
        let parameters = PatchParams::apply(MANAGER).force();
        let object = Patch::Apply(object);
        let applied = api.patch(&name, &parameters, &object);
        request(format!("apply {title}"), applied).await.map(drop)
    }

    /// The class, and that it is accepted.
    async fn class(&self) -> Result<(), Error> {
        let version = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "GatewayClass");
        let resource = ApiResource::from_gvk_with_plural(&version, "gatewayclasses");
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let class = Patch::Apply(json!({
            "apiVersion": resource.api_version, "kind": "GatewayClass", "metadata": {"name": WAYPOINT_CLASS},
            "spec": {"controllerName": CONTROLLER_NAME, "description": "Waypoints of the Ambit mesh"},
        }));
        let parameters = PatchParams::apply(MANAGER).force();
        let applied = api.patch(WAYPOINT_CLASS, &parameters, &class);
        let applied = request(format!("apply GatewayClass {WAYPOINT_CLASS}"), applied).await?;
        let message = "handled by Ambit".to_owned();
        let accepted = Statement { kind: "Accepted", holds: true, reason: "Accepted", message };
        say(&api, &resource, &applied, accepted).await
    }
}

/// What a Gateway's status says of its waypoint.
fn outcome(provisioned: &Result<(), Error>) -> Statement {
    let (reason, message) = match provisioned {
        Ok(()) => ("Provisioned", "the waypoint's objects are as they should be".to_owned()),
        Err(error @ Error::Parameters(_)) => ("InvalidParameters", chain(error)),
        Err(error @ Error::Taken(_)) => ("Conflict", chain(error)),
        Err(error @ (Error::Request { .. } | Error::NoRoots(_))) => ("Pending", chain(error)),
    };
    Statement { kind: objects::CONDITION, holds: provisioned.is_ok(), reason, message }
}

/// Writes a condition into an object's status, unless it is there.
async fn say(
    api: &Api<DynamicObject>,
    resource: &ApiResource,
    object: &DynamicObject,
    statement: Statement,
) -> Result<(), Error> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let listed = object.data["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let present = Present { listed, listeners: &[], generation, now: &in_seconds(Timestamp::now()) };
    let conditions = written(&[statement], listed, present);
    if conditions.iter().all(|condition| listed.contains(condition)) {
        return Ok(());
    }
    let patch = Patch::Apply(json!({
        "apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name},
        "status": {"conditions": conditions},
    }));
    let parameters = PatchParams::apply(MANAGER).force();
    let said = api.patch_status(name, &parameters, &patch);
    request(format!("write the status of {} {name}", resource.kind), said).await.map(drop)
}

async fn request<T>(operation: String, answer: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    within(DEADLINE, answer).await.map_err(|source| Error::Request { operation, source })
}
