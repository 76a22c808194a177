//! Status conditions: one on each object of the mesh's own kinds, per component that enforces it. The leading
//! replica writes them, only where they differ, and at a limited rate.
//!
//! Entry points: [`Statuses`] collects (every replica), [`write`] writes (the leader).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ambit_core::derive::{Condition, Kind, Object, ObjectKey, Standing};
use ambit_crd::Mistake;
use ambit_kube::error::{chain, is_gone};
use ambit_kube::retry::{RequestError, within};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::item::{self, Seen, Watched};
use super::standing::{self, Present};

/// The type of the condition: so far the node daemons enforce everything.
const TYPE: &str = "ambit.dev/ZtunnelAccepted";
/// Between two writes.
const INTERVAL: Duration = Duration::from_millis(50);
/// After a failed write.
const PAUSE: Duration = Duration::from_secs(5);
/// The deadline of a request.
const DEADLINE: Duration = Duration::from_secs(4);
/// A longer message is truncated.
const MAX_MESSAGE: usize = 2_048;

/// One object: its present conditions, and the verdict.
#[derive(Debug, Default)]
struct Entry {
    /// The version of the API under which it is written.
    version: &'static str,
    generation: i64,
    resource_version: String,
    conditions: Vec<Value>,
    /// Of a Gateway.
    listeners: Vec<Value>,
    verdict: Verdict,
    /// Of Gateway API's objects, in place of the verdict.
    standing: Option<Standing>,
}

/// What the condition says about an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Mistakes of the present version, if it cannot be parsed.
    mistakes: Vec<String>,
    /// What is in force because of that, if it is a policy.
    closed: Option<&'static str>,
    /// Conditions of the version that derivation has.
    derived: Vec<Condition>,
}

/// All objects with conditions.
#[derive(Debug, Default)]
pub(crate) struct Statuses {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<ObjectKey, Entry>,
    dirty: BTreeSet<ObjectKey>,
}

impl Statuses {
    /// Takes in an object, if its kind has conditions.
    pub(crate) fn seen(&self, seen: &Seen) {
        if resource(seen.key.kind, seen.version).is_none() {
            return;
        }
        let mut inner = self.inner.lock();
        let entry = inner.entries.entry(seen.key.clone()).or_default();
        entry.version = seen.version;
        entry.generation = seen.generation;
        entry.resource_version.clone_from(&seen.resource_version);
        entry.conditions.clone_from(&seen.conditions);
        entry.listeners.clone_from(&seen.listeners);
        let rejected = seen.read.as_ref().err();
        entry.verdict.mistakes = rejected.into_iter().flat_map(|bad| &bad.mistakes).map(text).collect();
        entry.verdict.closed = match rejected.and_then(|bad| bad.closed.as_deref()) {
            None => None,
            Some(Object::PeerAuthentication(_)) => Some("; it counts as STRICT until then"),
            Some(_) => Some("; all connections to what it selects are refused until then"),
        };
        inner.dirty.insert(seen.key.clone());
    }

    /// Takes in new conditions of derivation.
    pub(crate) fn derived(&self, conditions: Vec<Condition>) {
        let mut by_object: BTreeMap<ObjectKey, Vec<Condition>> = BTreeMap::new();
        for condition in conditions {
            by_object.entry(condition.object.clone()).or_default().push(condition);
        }
        let mut inner = self.inner.lock();
        for (key, conditions) in by_object {
            if let Some(entry) = inner.entries.get_mut(&key) {
                entry.verdict.derived = conditions;
                inner.dirty.insert(key);
            }
        }
    }

    /// Takes in what the statuses of Gateway API's objects are to say.
    pub(crate) fn stand(&self, standings: Vec<(ObjectKey, Standing)>) {
        let mut inner = self.inner.lock();
        for (key, standing) in standings {
            if let Some(entry) = inner.entries.get_mut(&key) {
                entry.standing = Some(standing);
                inner.dirty.insert(key);
            }
        }
    }

    pub(crate) fn gone(&self, key: &ObjectKey) {
        let mut inner = self.inner.lock();
        inner.entries.remove(key);
        inner.dirty.remove(key);
    }

    /// The batch is complete: conditions may be written.
    pub(crate) fn settled(&self) {
        self.changed.notify_one();
    }

    fn all_dirty(&self) {
        let mut inner = self.inner.lock();
        inner.dirty = inner.entries.keys().cloned().collect();
    }

    /// The next object whose conditions must be written, and the patch.
    fn next(&self, now: Timestamp) -> Option<(ObjectKey, Value)> {
        let mut inner = self.inner.lock();
        while let Some(key) = inner.dirty.pop_first() {
            let Some(entry) = inner.entries.get(&key) else { continue };
            if let Some(status) = entry.wanted(key.kind, now) {
                let patch = json!({
                    "metadata": { "resourceVersion": entry.resource_version },
                    "status": status,
                });
                return Some((key, patch));
            }
        }
        None
    }

    /// The API of an object.
    fn resource(&self, key: &ObjectKey) -> Option<ApiResource> {
        let version = self.inner.lock().entries.get(key)?.version;
        resource(key.kind, version)
    }

    fn again(&self, key: ObjectKey) {
        self.inner.lock().dirty.insert(key);
    }
}

impl Entry {
    /// The desired status; none if it is as it should be.
    fn wanted(&self, kind: Kind, now: Timestamp) -> Option<Value> {
        let now = in_seconds(now);
        match kind {
            // One that cannot be read keeps its status: it may be another controller's.
            Kind::Gateway | Kind::HTTPRoute | Kind::GRPCRoute | Kind::TLSRoute | Kind::TCPRoute => {
                let (listed, generation) = (self.conditions.as_slice(), self.generation);
                let present = Present { listed, listeners: &self.listeners, generation, now: &now };
                standing::patch(self.standing.as_ref()?, present)
            }
            _ => Some(json!({ "conditions": self.conditions(&now)? })),
        }
    }

    /// The desired conditions of an object of Istio's kinds; none if they are as they should be.
    fn conditions(&self, now: &str) -> Option<Vec<Value>> {
        let (status, reason, message) = self.verdict.condition()?;
        let old = self.conditions.iter().find(|condition| condition["type"] == TYPE);
        let since =
            old.filter(|old| old["status"] == status).and_then(|old| old["lastTransitionTime"].as_str());
        let ours = json!({
            "type": TYPE,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": self.generation,
            "lastTransitionTime": since.unwrap_or(now),
        });
        if old == Some(&ours) {
            return None;
        }
        let others = self.conditions.iter().filter(|condition| condition["type"] != TYPE);
        Some(others.cloned().chain([ours]).collect())
    }
}

impl Verdict {
    /// Status, reason and message; none while nothing is known.
    fn condition(&self) -> Option<(&'static str, &'static str, String)> {
        let has_message = |condition: &&Condition| !condition.message.is_empty();
        let derived = self.derived.iter().filter(has_message).map(|condition| match &condition.field {
            Some(field) => format!("{field}: {}", condition.message),
            None => condition.message.clone(),
        });
        let derived: Vec<String> = derived.collect();
        if !self.mistakes.is_empty() {
            let kept = if self.derived.is_empty() { "" } else { "; the last good version stays in force" };
            let rest = self.closed.unwrap_or(kept);
            return Some(("False", "Invalid", truncate(self.mistakes.join("; ")) + rest));
        }
        let first = self.derived.first()?;
        if self.derived.iter().any(|condition| !condition.accepted) {
            return Some(("False", "Invalid", truncate(derived.join("; "))));
        }
        debug_assert!(first.accepted);
        if derived.is_empty() {
            Some(("True", "Accepted", "in force".to_owned()))
        } else {
            Some(("True", "AcceptedWithWarnings", truncate(derived.join("; "))))
        }
    }
}

fn text(mistake: &Mistake) -> String {
    if mistake.field.is_empty() {
        mistake.message.clone()
    } else {
        format!("{}: {}", mistake.field, mistake.message)
    }
}

fn truncate(text: String) -> String {
    if text.len() <= MAX_MESSAGE {
        return text;
    }
    let mut text: String = text.chars().take(MAX_MESSAGE / 4).collect();
    text.push('…');
    text
}

/// A time as the API has it: in whole seconds.
pub(super) fn in_seconds(time: Timestamp) -> String {
    format!("{}Z", time.to_string().split(['.', 'Z']).next().unwrap_or_default())
}

/// The kinds with conditions.
fn resource(kind: Kind, version: &'static str) -> Option<ApiResource> {
    fn of<K: Watched>(version: &'static str) -> ApiResource {
        ApiResource::erase::<item::Item<K>>(&version)
    }
    match kind {
        Kind::AuthorizationPolicy => Some(of::<item::AuthorizationPolicy>(version)),
        Kind::PeerAuthentication => Some(of::<item::PeerAuthentication>(version)),
        Kind::ServiceEntry => Some(of::<item::ServiceEntry>(version)),
        Kind::WorkloadEntry => Some(of::<item::WorkloadEntry>(version)),
        Kind::Gateway => Some(of::<item::Gateway>(version)),
        Kind::HTTPRoute => Some(of::<item::HTTPRoute>(version)),
        Kind::GRPCRoute => Some(of::<item::GRPCRoute>(version)),
        Kind::TLSRoute => Some(of::<item::TLSRoute>(version)),
        Kind::TCPRoute => Some(of::<item::TCPRoute>(version)),
        // They get no conditions: their own controllers write their statuses, or they have none.
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::ReferenceGrant => None,
    }
}

/// Writes conditions while this replica leads.
pub(crate) async fn write(
    client: Client,
    statuses: std::sync::Arc<Statuses>,
    mut leads: watch::Receiver<bool>,
) {
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        // The leader before may have failed to write some.
        statuses.all_dirty();
        while *leads.borrow() {
            let pause = if let Some((key, patch)) = statuses.next(Timestamp::now()) {
                attempt(&client, &statuses, key, patch).await
            } else {
                tokio::select! {
                    () = statuses.changed.notified() => {}
                    _ = leads.changed() => {}
                }
                Duration::ZERO
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// Writes one object's conditions; returns the pause before the next.
async fn attempt(client: &Client, statuses: &Statuses, key: ObjectKey, patch: Value) -> Duration {
    let Some(resource) = statuses.resource(&key) else { return Duration::ZERO };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource);
    let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
    match within(DEADLINE, api.patch_status(&key.name, &parameters, &patch)).await {
        Ok(_) => INTERVAL,
        // Changed or deleted meanwhile: the watch will report it.
        Err(RequestError::Api(error)) if is_gone(&error) => INTERVAL,
        Err(error) => {
            tracing::warn!(%key, error = chain(&error), "failed to write a status");
            statuses.again(key);
            PAUSE
        }
    }
}

#[cfg(test)]
mod tests;
