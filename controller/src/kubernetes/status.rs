//! What is said in the objects themselves: a condition on each object of the mesh's own kinds, per component
//! that enforces it. Written by the replica that leads, only where it differs, and not faster than the API
//! server likes.
//!
//! Way in: [`Statuses`] collects (every replica), [`write`] writes (the one that leads).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ambit_core::derive::{Condition, Kind, ObjectKey};
use ambit_crd::Mistake;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::item::{self, Seen, Watched};

/// Whose word the condition is: node daemons enforce all of it so far.
const TYPE: &str = "ambit.dev/ZtunnelAccepted";
/// Between two writes.
const PACE: Duration = Duration::from_millis(50);
/// After one that failed.
const PAUSE: Duration = Duration::from_secs(5);
/// For one answer of the API server.
const DEADLINE: Duration = Duration::from_secs(4);
/// A longer message is cut.
const LONGEST: usize = 2_048;

/// One object: what the API has, and what is to be said.
#[derive(Debug, Default)]
struct Entry {
    generation: i64,
    resource_version: String,
    conditions: Vec<Value>,
    verdict: Verdict,
}

/// What is to be said about an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Of the present version, where it cannot even be read.
    mistakes: Vec<String>,
    /// Of the version that derivation knows.
    derived: Vec<Condition>,
}

/// All objects of which something is said.
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
    /// An object of a kind that gets conditions was seen.
    pub(crate) fn seen(&self, seen: &Seen) {
        if resource(seen.key.kind).is_none() {
            return;
        }
        let mut inner = self.inner.lock();
        let entry = inner.entries.entry(seen.key.clone()).or_default();
        entry.generation = seen.generation;
        entry.resource_version.clone_from(&seen.resource_version);
        entry.conditions.clone_from(&seen.conditions);
        entry.verdict.mistakes = seen.read.as_ref().err().into_iter().flatten().map(in_words).collect();
        inner.dirty.insert(seen.key.clone());
    }

    /// What derivation has to say, of every object of which it is new.
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

    pub(crate) fn gone(&self, key: &ObjectKey) {
        let mut inner = self.inner.lock();
        inner.entries.remove(key);
        inner.dirty.remove(key);
    }

    /// The batch is complete: what is said now is what is meant.
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
            if let Some(conditions) = entry.wanted(now) {
                let patch = json!({
                    "metadata": { "resourceVersion": entry.resource_version },
                    "status": { "conditions": conditions },
                });
                return Some((key, patch));
            }
        }
        None
    }

    fn again(&self, key: ObjectKey) {
        self.inner.lock().dirty.insert(key);
    }
}

impl Entry {
    /// The conditions as they should be; none where they are.
    fn wanted(&self, now: Timestamp) -> Option<Vec<Value>> {
        let (status, reason, message) = self.verdict.words()?;
        let old = self.conditions.iter().find(|condition| condition["type"] == TYPE);
        let since =
            old.filter(|old| old["status"] == status).and_then(|old| old["lastTransitionTime"].as_str());
        // Whole seconds, as the API has times.
        let now = now.to_string();
        let now = format!("{}Z", now.split(['.', 'Z']).next().unwrap_or_default());
        let ours = json!({
            "type": TYPE,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": self.generation,
            "lastTransitionTime": since.unwrap_or(&now),
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
    fn words(&self) -> Option<(&'static str, &'static str, String)> {
        let said = |condition: &&Condition| !condition.message.is_empty();
        let derived = self.derived.iter().filter(said).map(|condition| match &condition.field {
            Some(field) => format!("{field}: {}", condition.message),
            None => condition.message.clone(),
        });
        let derived: Vec<String> = derived.collect();
        if !self.mistakes.is_empty() {
            let rest = if self.derived.is_empty() { "" } else { "; the last good version stays in force" };
            return Some(("False", "Invalid", cut(self.mistakes.join("; ")) + rest));
        }
        let first = self.derived.first()?;
        if self.derived.iter().any(|condition| !condition.accepted) {
            return Some(("False", "Invalid", cut(derived.join("; "))));
        }
        debug_assert!(first.accepted);
        if derived.is_empty() {
            Some(("True", "Accepted", "in force".to_owned()))
        } else {
            Some(("True", "AcceptedWithWarnings", cut(derived.join("; "))))
        }
    }
}

fn in_words(mistake: &Mistake) -> String {
    if mistake.field.is_empty() {
        mistake.message.clone()
    } else {
        format!("{}: {}", mistake.field, mistake.message)
    }
}

fn cut(text: String) -> String {
    if text.len() <= LONGEST {
        return text;
    }
    let mut text: String = text.chars().take(LONGEST / 4).collect();
    text.push('…');
    text
}

/// The kinds that get conditions.
fn resource(kind: Kind) -> Option<ApiResource> {
    fn of<K: Watched>() -> ApiResource {
        ApiResource::erase::<item::Item<K>>(&())
    }
    match kind {
        Kind::AuthorizationPolicy => Some(of::<item::AuthorizationPolicy>()),
        Kind::PeerAuthentication => Some(of::<item::PeerAuthentication>()),
        Kind::ServiceEntry => Some(of::<item::ServiceEntry>()),
        Kind::WorkloadEntry => Some(of::<item::WorkloadEntry>()),
        _ => None,
    }
}

/// Writes while it leads.
pub(crate) async fn write(
    client: Client,
    statuses: std::sync::Arc<Statuses>,
    mut leads: watch::Receiver<bool>,
) {
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        // Whoever led before may have written nothing, or may have died over it.
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

/// Writes one object's conditions. How long to rest afterwards.
async fn attempt(client: &Client, statuses: &Statuses, key: ObjectKey, patch: Value) -> Duration {
    let Some(resource) = resource(key.kind) else { return Duration::ZERO };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource);
    let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
    let written = tokio::time::timeout(DEADLINE, api.patch_status(&key.name, &parameters, &patch)).await;
    match written {
        Ok(Ok(_)) => PACE,
        // Changed or deleted meanwhile: the watch brings it.
        Ok(Err(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => PACE,
        Ok(Err(error)) => {
            tracing::warn!(%key, error = %crate::error_chain(&error), "the status cannot be written");
            statuses.again(key);
            PAUSE
        }
        Err(_) => {
            statuses.again(key);
            PAUSE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ObjectKey {
        ObjectKey { kind: Kind::AuthorizationPolicy, namespace: "shop".to_owned(), name: "cart".to_owned() }
    }

    fn condition(accepted: bool, field: Option<&str>, message: &str) -> Condition {
        Condition { object: key(), field: field.map(str::to_owned), accepted, message: message.to_owned() }
    }

    #[test]
    fn verdicts_in_words() {
        type Row<'a> =
            (&'a str, &'a [&'a str], &'a [Condition], Option<(&'static str, &'static str, &'a str)>);
        let fine = condition(true, None, "");
        let noted = condition(true, Some("spec.rules[0]"), "drops hosts");
        let refused = condition(false, Some("spec.action"), "AUDIT is not enforced");
        let rows: [Row<'_>; 6] = [
            ("nothing known", &[], &[], None),
            ("fine", &[], std::slice::from_ref(&fine), Some(("True", "Accepted", "in force"))),
            (
                "noted",
                &[],
                std::slice::from_ref(&noted),
                Some(("True", "AcceptedWithWarnings", "spec.rules[0]: drops hosts")),
            ),
            (
                "refused",
                &[],
                &[noted.clone(), refused],
                Some(("False", "Invalid", "spec.rules[0]: drops hosts; spec.action: AUDIT is not enforced")),
            ),
            ("unreadable", &["a: b"], &[], Some(("False", "Invalid", "a: b"))),
            (
                "unreadable now",
                &["a", "b"],
                std::slice::from_ref(&fine),
                Some(("False", "Invalid", "a; b; the last good version stays in force")),
            ),
        ];
        for (name, mistakes, derived, expected) in rows {
            let mistakes = mistakes.iter().map(|mistake| (*mistake).to_owned()).collect();
            let verdict = Verdict { mistakes, derived: derived.to_vec() };
            let expected = expected.map(|(status, reason, message)| (status, reason, message.to_owned()));
            assert_eq!(verdict.words(), expected, "{name}");
        }
    }

    #[test]
    fn what_is_written_and_what_is_left() {
        let seen = |generation, conditions: Vec<Value>| Seen {
            key: key(),
            read: Err(vec![Mistake { field: "spec".to_owned(), message: "no".to_owned() }]),
            uid: String::new(),
            resource_version: "7".to_owned(),
            generation,
            taints: Vec::new(),
            conditions,
        };
        let statuses = Statuses::default();
        let (early, late) = (Timestamp::from_second(1_000).unwrap(), Timestamp::from_second(2_000).unwrap());
        let others = json!({"type": "other", "status": "True"});
        statuses.seen(&seen(1, vec![others.clone()]));
        let (name, patch) = statuses.next(early).expect("a patch");
        assert_eq!((name, &patch["metadata"]["resourceVersion"]), (key(), &json!("7")));
        let written = patch["status"]["conditions"].as_array().unwrap().clone();
        assert_eq!((written.len(), &written[0]), (2, &others), "what others say stays");
        assert_eq!(written[1]["lastTransitionTime"], "1970-01-01T00:16:40Z");
        assert_eq!(statuses.next(early), None, "once");
        statuses.seen(&seen(1, written.clone()));
        assert_eq!(statuses.next(late), None, "as it should be");
        // Another version of which the same is to be said: since when it is so stays.
        statuses.seen(&seen(2, written));
        let (_, patch) = statuses.next(late).expect("a patch");
        let ours = &patch["status"]["conditions"][1];
        assert_eq!(
            (&ours["observedGeneration"], &ours["lastTransitionTime"]),
            (&json!(2), &json!("1970-01-01T00:16:40Z"))
        );
        statuses.all_dirty();
        statuses.gone(&key());
        assert_eq!(statuses.next(late), None);
    }
}
