//! PeerAuthentication → policies that deny peers without identity, and which workloads name which.
//!
//! One object decides for a workload: the oldest that selects it, else its namespace's, else the mesh's.
//! UNSET inherits from the next wider one; the default is PERMISSIVE. If all ports of a workload have one
//! mode, the workload names the policy of the object that set it. If `portLevelMtls` makes exceptions, the
//! object with the exceptions has a policy of its own that includes the inherited mode.
//!
//! Entry points: [`Candidates::policy`] and [`Candidates::policy_for`].

use std::collections::BTreeMap;

use super::condition::Condition;
use super::object::{Kind, MtlsMode, ObjectKey, PeerAuthentication, Selector};
use super::settings::Settings;
use super::store::{Contents, Labelled, Store, selects};
use crate::model::{self, Action, Authorization, Clause, Match, PolicyKey, Rule, StringMatch};

/// The objects that may decide for the workloads of a namespace.
pub(super) struct Candidates<'a> {
    settings: &'a Settings,
    /// The one in force for the mesh.
    mesh: Option<&'a PeerAuthentication>,
    /// The one in force for the namespace, if it is not the root namespace.
    namespace: Option<&'a PeerAuthentication>,
    /// Those with a selector, oldest first; none in the root namespace.
    selecting: Vec<&'a PeerAuthentication>,
}

impl<'a> Candidates<'a> {
    pub(super) fn of(store: &'a Store, settings: &'a Settings, namespace: &str) -> Self {
        let mesh = store.contents(&settings.root_namespace).and_then(for_all);
        if namespace == settings.root_namespace {
            return Self { settings, mesh, namespace: None, selecting: Vec::new() };
        }
        let contents = store.contents(namespace);
        let all = contents.into_iter().flat_map(|contents| contents.peer_authentications.values());
        let mut selecting: Vec<_> = all.filter(|object| !object.selector.is_empty()).collect();
        selecting.sort_by_key(|object| age(object));
        Self { settings, mesh, namespace: contents.and_then(for_all), selecting }
    }

    /// The policy of an object of this namespace, if it has one.
    pub(super) fn policy(&self, object: &PeerAuthentication) -> Option<Authorization> {
        let rule = if object.selector.is_empty() {
            let in_force = [self.mesh, self.namespace].into_iter().flatten().any(|other| is(other, object));
            (in_force && object.mode == MtlsMode::Strict).then(|| deny_unidentified(Match::default()))?
        } else if self.selecting.iter().any(|other| is(other, object)) {
            self.own_rule(object)?
        } else {
            return None;
        };
        let metadata = &object.metadata;
        Some(Authorization {
            key: PolicyKey::of_peer_authentication(&metadata.namespace, &metadata.name),
            scope: model::Scope::WorkloadSelector,
            action: Action::Deny,
            rules: vec![rule],
            dry_run: false,
        })
    }

    /// The policy that a workload of this namespace names, if any.
    pub(super) fn policy_for(&self, workload: &impl Labelled) -> Option<PolicyKey> {
        let selecting = self.selecting.iter().find(|object| selects(&object.selector, workload));
        let deciding = match selecting {
            Some(object) if self.own_rule(object).is_some() => Some(*object),
            Some(object) if object.mode == MtlsMode::Unset => self.inherited_strict(),
            Some(_) => None,
            None => self.inherited_strict(),
        };
        deciding.map(|object| {
            PolicyKey::of_peer_authentication(&object.metadata.namespace, &object.metadata.name)
        })
    }

    /// Whether a workload of this namespace demands TLS on its own node too: the most specific object with
    /// the annotation decides.
    pub(super) fn same_node_tls(&self, workload: &impl Labelled) -> bool {
        let selecting = self.selecting.iter().find(|object| selects(&object.selector, workload));
        let mut said = [selecting.copied(), self.namespace, self.mesh].into_iter().flatten();
        said.find_map(|object| object.same_node_tls).unwrap_or(false)
    }

    /// The conditions of an object of this namespace.
    pub(super) fn conditions(&self, object: &PeerAuthentication) -> Vec<Condition> {
        let metadata = &object.metadata;
        let key = ObjectKey {
            kind: Kind::PeerAuthentication,
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
        };
        let condition = |field: &str, accepted, message: String| {
            vec![Condition { object: key.clone(), field: Some(field.to_owned()), accepted, message }]
        };
        if !object.selector.is_empty() && metadata.namespace == self.settings.root_namespace {
            let message = "selects nothing in the root namespace: this object is not in force".to_owned();
            return condition("spec.selector", false, message);
        }
        let rival =
            if metadata.namespace == self.settings.root_namespace { self.mesh } else { self.namespace };
        if object.selector.is_empty()
            && let Some(rival) = rival.filter(|rival| !is(rival, object))
        {
            let message =
                format!("is not in force: {} is older and has no selector either", rival.metadata.name);
            return condition("metadata.creationTimestamp", false, message);
        }
        if let Some((rival, message)) = self.selecting_rival(object) {
            let lost = rival == Rivalry::Lost;
            return condition("metadata.creationTimestamp", !lost, message);
        }
        if object.selector.is_empty() && !object.port_modes.is_empty() {
            let message = "needs a selector: the ports are not looked at".to_owned();
            return condition("spec.portLevelMtls", true, message);
        }
        if object.mode == MtlsMode::Disable
            || object.port_modes.values().any(|mode| *mode == MtlsMode::Disable)
        {
            return condition("spec.mtls.mode", true, "DISABLE means PERMISSIVE here".to_owned());
        }
        vec![Condition::accepted(key)]
    }

    /// An older object with a selector that selects workloads of this one too, and the message about it.
    fn selecting_rival(&self, object: &PeerAuthentication) -> Option<(Rivalry, String)> {
        let own = self.selecting.iter().position(|other| is(other, object))?;
        let older = &self.selecting[..own];
        if let Some(rival) = older.iter().find(|older| covers(&older.selector, &object.selector)) {
            let name = &rival.metadata.name;
            let message = format!("is not in force: {name} is older and selects all of the same workloads");
            return Some((Rivalry::Lost, message));
        }
        let rival = older.iter().find(|older| may_overlap(&older.selector, &object.selector))?;
        let name = &rival.metadata.name;
        let message = format!("is in force only for workloads that {name} does not select too: it is older");
        Some((Rivalry::Partial, message))
    }

    /// The object by which the namespace is STRICT, if it is.
    fn inherited_strict(&self) -> Option<&'a PeerAuthentication> {
        let said =
            [self.namespace, self.mesh].into_iter().flatten().find(|object| object.mode != MtlsMode::Unset);
        said.filter(|object| object.mode == MtlsMode::Strict)
    }

    /// The rule of an object with a selector; `None` if it denies nothing that is not inherited.
    fn own_rule(&self, object: &PeerAuthentication) -> Option<Rule> {
        let strict = match object.mode {
            MtlsMode::Strict => true,
            MtlsMode::Permissive | MtlsMode::Disable => false,
            MtlsMode::Unset => self.inherited_strict().is_some(),
        };
        let ports = |wanted: fn(MtlsMode) -> bool| -> Vec<u16> { ports_of(&object.port_modes, wanted) };
        let strict_ports = ports(|mode| mode == MtlsMode::Strict);
        let open_ports = ports(|mode| matches!(mode, MtlsMode::Permissive | MtlsMode::Disable));
        if strict && (object.mode == MtlsMode::Strict || !open_ports.is_empty()) {
            return Some(deny_unidentified(Match { not_destination_ports: open_ports, ..Match::default() }));
        }
        if !strict && !strict_ports.is_empty() {
            return Some(deny_unidentified(Match { destination_ports: strict_ports, ..Match::default() }));
        }
        None
    }
}

/// How an older object limits a younger one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rivalry {
    /// The older one selects all its workloads.
    Lost,
    /// The older one selects some of its workloads.
    Partial,
}

/// Whether the first selector selects whatever the second does.
fn covers(first: &Selector, second: &Selector) -> bool {
    first.iter().all(|(name, value)| second.get(name) == Some(value))
}

/// Whether one workload could have the labels of both.
fn may_overlap(first: &Selector, second: &Selector) -> bool {
    first.iter().all(|(name, value)| second.get(name).is_none_or(|other| other == value))
}

/// The oldest object of a namespace without selector.
fn for_all(contents: &Contents) -> Option<&PeerAuthentication> {
    contents
        .peer_authentications
        .values()
        .filter(|object| object.selector.is_empty())
        .min_by_key(|object| age(object))
}

/// Oldest first; those of unknown age last, by name.
fn age(object: &PeerAuthentication) -> (i64, &str) {
    (object.metadata.created.unwrap_or(i64::MAX), &object.metadata.name)
}

fn is(a: &PeerAuthentication, b: &PeerAuthentication) -> bool {
    a.metadata.namespace == b.metadata.namespace && a.metadata.name == b.metadata.name
}

fn ports_of(modes: &BTreeMap<u16, MtlsMode>, wanted: fn(MtlsMode) -> bool) -> Vec<u16> {
    modes.iter().filter(|(_, mode)| wanted(**mode)).map(|(port, _)| *port).collect()
}

fn deny_unidentified(besides: Match) -> Rule {
    let m = Match { not_principals: vec![StringMatch::Presence], ..besides };
    Rule { clauses: vec![Clause { matches: vec![m] }] }
}
