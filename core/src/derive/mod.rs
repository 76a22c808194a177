//! Objects → changes: from what users write (Kubernetes or files, already parsed) to what the mesh holds.
//!
//! The way in is [`World::apply`]: events in, [`Change`]s and status [`Condition`]s out. An object that
//! cannot be derived becomes a condition, and its last good version stays in force.

mod authorization;
mod dirty;
mod endpoint_slice;
mod object;
mod peer_authentication;
mod service;
mod service_entry;
mod store;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::mesh::Change;
use crate::model::{self, Authorization, PolicyKey, ServiceKey, TrustDomain, WorkloadUid};

use dirty::Dirty;
use store::Store;

pub use object::{
    AuthorizationPolicy, ContainerPort, EndpointSlice, EntryPort, Kind, LocalityText, Metadata, MtlsMode,
    Namespace, Node, Object, ObjectEvent, ObjectKey, Operation, Owner, PeerAuthentication, Phase, Pod,
    PolicyAction, PolicyRule, PortRef, Resolution, Selector, Service, ServiceEntry, ServicePort,
    SliceEndpoint, SlicePort, Source, TargetRef, TrafficDistribution, Transport, When, WorkloadEntry,
};

/// What objects do not say themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub trust_domain: TrustDomain,
    /// Trust domains that are as good as `trust_domain`: in policies, and on peers' certificates.
    pub trust_domain_aliases: Arc<[TrustDomain]>,
    /// Policies without selector in this namespace concern the whole mesh.
    pub root_namespace: String,
    pub cluster: String,
    /// The DNS domain of services.
    pub domain: String,
    pub network: String,
    /// A pod is announced as reachable by HBONE only once its node has annotated it; else its label is
    /// enough.
    pub enrolled_by_annotation: bool,
    /// Where the mesh's own pods are: they are never in it.
    pub system_namespace: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            trust_domain_aliases: [].into(),
            root_namespace: "ambit-system".to_owned(),
            cluster: "Kubernetes".to_owned(),
            domain: "cluster.local".to_owned(),
            network: String::new(),
            enrolled_by_annotation: false,
            system_namespace: "ambit-system".to_owned(),
        }
    }
}

/// What is to be said about an object, in its status or to whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub object: ObjectKey,
    /// The field concerned, as a path in the object (`spec.rules[0].from[1].source.serviceAccounts`).
    pub field: Option<String>,
    /// Whether the object is in force, if only in the way the message says. A version that is not accepted
    /// leaves the last accepted one in force.
    pub accepted: bool,
    /// Empty where there is nothing to say.
    pub message: String,
}

impl Condition {
    fn accepted(object: ObjectKey) -> Self {
        Self { object, field: None, accepted: true, message: String::new() }
    }
}

/// What a batch of events leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Derived {
    /// In an order that is safe to apply and publish one by one: policies come before the workloads that
    /// name them and go after them.
    pub changes: Vec<Change>,
    /// All conditions of every object whose conditions changed, which need not be one of the events'
    /// objects.
    pub conditions: Vec<Condition>,
}

/// The objects, and what was derived from them.
#[derive(Clone, Debug)]
pub struct World {
    settings: Settings,
    store: Store,
    workloads: BTreeMap<WorkloadUid, Arc<model::Workload>>,
    /// The workloads that are endpoints written out in service entries and endpoint slices.
    endpoints: BTreeMap<ObjectKey, BTreeSet<WorkloadUid>>,
    services: BTreeMap<ServiceKey, Arc<model::Service>>,
    policies: BTreeMap<PolicyKey, Arc<Authorization>>,
    conditions: BTreeMap<ObjectKey, Vec<Condition>>,
}

impl World {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            store: Store::default(),
            workloads: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            services: BTreeMap::new(),
            policies: BTreeMap::new(),
            conditions: BTreeMap::new(),
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What there is to say about the objects now.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.conditions.values().flatten()
    }

    /// Takes events in and says what changes in the mesh. Only what the events can have touched is derived
    /// again.
    pub fn apply(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> Derived {
        let mut dirty = Dirty::default();
        let mut report = Report::default();
        for event in events {
            match event {
                ObjectEvent::Put(object) => self.put(*object, &mut dirty, &mut report),
                ObjectEvent::Delete(key) => self.delete(&key, &mut dirty, &mut report),
            }
        }
        dirty.widen(&self.store);

        let mut steps = Steps::default();
        self.derive_services(&dirty, &mut steps);
        self.derive_authorization_policies(&dirty, &mut steps, &mut report);
        self.derive_peer_authentications(&dirty, &mut steps, &mut report);
        self.derive_workloads(&dirty, &mut steps, &mut report);
        self.derive_service_entries(&dirty, &mut steps, &mut report);
        self.derive_endpoint_slices(&dirty, &mut steps);
        Derived { changes: steps.into_changes(), conditions: report.finish(&mut self.conditions) }
    }

    fn put(&mut self, object: Object, dirty: &mut Dirty, report: &mut Report) {
        let key = object.key();
        if let Object::AuthorizationPolicy(policy) = &object
            && let Err(problem) = authorization::derive(policy, &self.settings)
        {
            report.set(key.clone(), vec![problem.into_condition(key)]);
            return;
        }
        if let Object::EndpointSlice(slice) = &object
            && slice.of_selector
        {
            // What was kept under its name was somebody else's.
            if self.store.endpoint_slice(&key).is_some() {
                self.delete(&key, dirty, report);
            }
            return;
        }
        if self.store.holds(&object) && !self.is_refused(&key) && !report.has(&key) {
            return;
        }
        report.forget(&key);
        // What the old version reached is touched as well as what the new one reaches.
        dirty.mark(&self.store, &self.settings, &key);
        self.store.put(object);
        dirty.mark(&self.store, &self.settings, &key);
    }

    fn delete(&mut self, key: &ObjectKey, dirty: &mut Dirty, report: &mut Report) {
        dirty.mark(&self.store, &self.settings, key);
        self.store.delete(key);
        report.set(key.clone(), Vec::new());
    }

    fn is_refused(&self, key: &ObjectKey) -> bool {
        self.conditions.get(key).is_some_and(|conditions| conditions.iter().any(|c| !c.accepted))
    }

    fn derive_services(&mut self, dirty: &Dirty, steps: &mut Steps) {
        for name in dirty.hosts() {
            let new = service_entry::owner(&self.store, &self.settings, &name)
                .and_then(|owner| owner.service(&name, &self.settings));
            match replace(&mut self.services, name.clone(), new) {
                Some(Replaced::Put(service)) => steps.put_services.push(Change::PutService(service)),
                Some(Replaced::Removed) => steps.removed_services.push(Change::RemoveService(name)),
                None => {}
            }
        }
    }

    fn derive_service_entries(&mut self, dirty: &Dirty, steps: &mut Steps, report: &mut Report) {
        for key in dirty.service_entries() {
            let mut new = BTreeMap::new();
            if let Some(entry) = self.store.service_entry(key) {
                let claims = service_entry::Claims::of(entry, &self.store, &self.settings);
                report.set(key.clone(), claims.conditions(key));
                let context = workload::Context::new(&self.store, &self.settings, &key.namespace);
                new = claims.endpoints(&context).map(|workload| (workload.uid.clone(), workload)).collect();
            }
            self.put_endpoints(key, new, steps);
        }
    }

    fn derive_endpoint_slices(&mut self, dirty: &Dirty, steps: &mut Steps) {
        for key in dirty.endpoint_slices() {
            let context = workload::Context::new(&self.store, &self.settings, &key.namespace);
            let slice = self.store.endpoint_slice(key);
            let new =
                slice.into_iter().flat_map(|slice| endpoint_slice::workloads(slice, &self.store, &context));
            let new = new.map(|workload| (workload.uid.clone(), workload)).collect();
            self.put_endpoints(key, new, steps);
        }
    }

    /// Puts what an object writes out, and removes what it wrote out before.
    fn put_endpoints(
        &mut self,
        key: &ObjectKey,
        new: BTreeMap<WorkloadUid, model::Workload>,
        steps: &mut Steps,
    ) {
        let uids: BTreeSet<_> = new.keys().cloned().collect();
        let old = if uids.is_empty() {
            self.endpoints.remove(key)
        } else {
            self.endpoints.insert(key.clone(), uids)
        };
        for uid in old.into_iter().flatten().filter(|uid| !new.contains_key(uid)) {
            self.put_workload(uid, None, steps);
        }
        for (uid, workload) in new {
            self.put_workload(uid, Some(workload), steps);
        }
    }

    fn put_workload(&mut self, uid: WorkloadUid, new: Option<model::Workload>, steps: &mut Steps) {
        match replace(&mut self.workloads, uid.clone(), new) {
            Some(Replaced::Put(workload)) => steps.put_workloads.push(Change::PutWorkload(workload)),
            Some(Replaced::Removed) => steps.removed_workloads.push(Change::RemoveWorkload(uid)),
            None => {}
        }
    }

    fn derive_authorization_policies(&mut self, dirty: &Dirty, steps: &mut Steps, report: &mut Report) {
        for key in dirty.authorization_policies() {
            let derived = self
                .store
                .authorization_policy(key)
                .map(|policy| authorization::derive(policy, &self.settings));
            let name = PolicyKey { namespace: key.namespace.as_str().into(), name: key.name.as_str().into() };
            match derived {
                Some(Ok(derived)) => {
                    report.set_unless_said(key.clone(), derived.conditions(key));
                    steps.policy(replace(&mut self.policies, name.clone(), derived.policy), name);
                }
                // Only accepted versions are kept.
                Some(Err(problem)) => report.set(key.clone(), vec![problem.into_condition(key.clone())]),
                None => steps.policy(replace(&mut self.policies, name.clone(), None), name),
            }
        }
    }

    fn derive_peer_authentications(&mut self, dirty: &Dirty, steps: &mut Steps, report: &mut Report) {
        for key in dirty.peer_authentications() {
            let name = PolicyKey::of_peer_authentication(&key.namespace, &key.name);
            let new = self.store.peer_authentication(key).map(|object| {
                let scope = peer_authentication::Scope::of(&self.store, &self.settings, &key.namespace);
                report.set(key.clone(), scope.conditions(object));
                scope.policy(object)
            });
            steps.policy(replace(&mut self.policies, name.clone(), new.flatten()), name);
        }
    }

    fn derive_workloads(&mut self, dirty: &Dirty, steps: &mut Steps, report: &mut Report) {
        for key in dirty.workloads() {
            let uid = workload::uid(key, &self.settings);
            let context = workload::Context::new(&self.store, &self.settings, &key.namespace);
            let new = match key.kind {
                Kind::WorkloadEntry => self.store.workload_entry(key).map(|entry| {
                    report.set(key.clone(), workload::entry_conditions(entry));
                    context.entry(entry)
                }),
                _ => self.store.pod(key).and_then(|pod| {
                    report.set(key.clone(), workload::pod_conditions(key, pod));
                    context.pod(pod)
                }),
            };
            self.put_workload(uid, new, steps);
        }
    }
}

enum Replaced<T> {
    Put(Arc<T>),
    Removed,
}

/// Puts or removes a derived value; `None` where that changes nothing.
fn replace<K: Ord, T: PartialEq>(
    map: &mut BTreeMap<K, Arc<T>>,
    key: K,
    new: Option<T>,
) -> Option<Replaced<T>> {
    match new {
        Some(new) if map.get(&key).is_some_and(|old| **old == new) => None,
        Some(new) => {
            let new = Arc::new(new);
            map.insert(key, new.clone());
            Some(Replaced::Put(new))
        }
        None => map.remove(&key).map(|_| Replaced::Removed),
    }
}

/// The changes of a batch, by what may come when.
#[derive(Default)]
struct Steps {
    put_policies: Vec<Change>,
    put_services: Vec<Change>,
    put_workloads: Vec<Change>,
    removed_workloads: Vec<Change>,
    removed_services: Vec<Change>,
    removed_policies: Vec<Change>,
}

impl Steps {
    fn policy(&mut self, replaced: Option<Replaced<Authorization>>, key: PolicyKey) {
        match replaced {
            Some(Replaced::Put(policy)) => self.put_policies.push(Change::PutPolicy(policy)),
            Some(Replaced::Removed) => self.removed_policies.push(Change::RemovePolicy(key)),
            None => {}
        }
    }

    fn into_changes(self) -> Vec<Change> {
        let Self {
            put_policies,
            put_services,
            put_workloads,
            removed_workloads,
            removed_services,
            removed_policies,
        } = self;
        [put_policies, put_services, put_workloads, removed_workloads, removed_services, removed_policies]
            .concat()
    }
}

/// What a batch has to say about objects; an empty list means that the object is gone.
#[derive(Default)]
struct Report {
    said: BTreeMap<ObjectKey, Vec<Condition>>,
}

impl Report {
    fn set(&mut self, key: ObjectKey, conditions: Vec<Condition>) {
        self.said.insert(key, conditions);
    }

    /// For conditions of the version in force: a newer version that was refused in this batch has the word.
    fn set_unless_said(&mut self, key: ObjectKey, conditions: Vec<Condition>) {
        self.said.entry(key).or_insert(conditions);
    }

    fn forget(&mut self, key: &ObjectKey) {
        self.said.remove(key);
    }

    fn has(&self, key: &ObjectKey) -> bool {
        self.said.contains_key(key)
    }

    fn finish(self, known: &mut BTreeMap<ObjectKey, Vec<Condition>>) -> Vec<Condition> {
        let mut changed = Vec::new();
        for (key, conditions) in self.said {
            if conditions.is_empty() {
                known.remove(&key);
            } else if known.get(&key) != Some(&conditions) {
                changed.extend(conditions.iter().cloned());
                known.insert(key, conditions);
            }
        }
        changed
    }
}
