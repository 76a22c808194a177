//! What a backend reference leads to: [`Resolver`].
//!
//! A mesh's routes may send to any namespace without a ReferenceGrant as long as they open nothing: to the
//! route's own namespace, and to that of the Services that are its parents, whose waypoint it is that sends.
//! Beyond these the waypoint would lend its own identity, so a grant is asked for; also where parents are in
//! several namespaces, for then the waypoint of one sends to another.

use super::super::object::{BackendTarget, GrantFrom, Kind, ObjectKey, RouteObject};
use super::super::service;
use super::super::settings::Settings;
use super::super::store::Store;
use super::parent::parents;
use crate::route::Target;

/// A reference that leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::derive) struct Unresolved {
    /// As Gateway API names it.
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Resolves the references of one route.
pub(super) struct Resolver<'a> {
    object: &'a RouteObject,
    store: &'a Store,
    settings: &'a Settings,
    /// What did not lead anywhere so far.
    pub(super) unresolved: Vec<Unresolved>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(object: &'a RouteObject, store: &'a Store, settings: &'a Settings) -> Self {
        Self { object, store, settings, unresolved: Vec::new() }
    }

    /// Where a reference leads; one that leads nowhere keeps its share, as errors.
    pub(super) fn target(&mut self, backend: &BackendTarget) -> Target {
        match self.find(backend) {
            Ok(target) => target,
            Err((reason, why)) => {
                let message = format!("{}: {why}", backend.field);
                let invalid = Target::Invalid { reason: message.as_str().into() };
                self.unresolved.push(Unresolved { reason, message });
                invalid
            }
        }
    }

    fn find(&self, backend: &BackendTarget) -> Result<Target, (&'static str, String)> {
        let BackendTarget { group, kind, name, .. } = backend;
        if !(group.is_empty() || group == "core") || kind != "Service" {
            return Err(("InvalidKind", format!("{kind} of {group:?} is not a kind that serves requests")));
        }
        let namespace = backend.namespace.as_deref().unwrap_or(&self.object.metadata.namespace);
        if !self.is_permitted(namespace, name) {
            let message = format!("no ReferenceGrant in {namespace} permits the reference to Service {name}");
            return Err(("RefNotPermitted", message));
        }
        let not_found = |message: String| ("BackendNotFound", message);
        let key = ObjectKey { kind: Kind::Service, namespace: namespace.to_owned(), name: name.clone() };
        let found = self.store.service(&key).filter(|service| !service.external_name);
        let service = found.ok_or_else(|| not_found(format!("there is no Service {namespace}/{name}")))?;
        let port = backend.port.ok_or_else(|| not_found("a Service needs a port".to_owned()))?;
        if !service::tcp_ports(service).any(|declared| declared.port == port) {
            return Err(not_found(format!("Service {namespace}/{name} has no TCP port {port}")));
        }
        Ok(Target::Service { service: service::key(namespace, name, self.settings), port })
    }

    fn is_permitted(&self, namespace: &str, name: &str) -> bool {
        let own = &self.object.metadata.namespace;
        let parents = parents(self.object);
        let is_of_parents = !parents.is_empty() && parents.iter().all(|(parent, _)| parent == namespace);
        if namespace == own || is_of_parents {
            return true;
        }
        let kind = Kind::of_route(self.object.kind).name();
        let from = |it: &GrantFrom| {
            it.group == "gateway.networking.k8s.io" && it.kind == kind && it.namespace == *own
        };
        let contents = self.store.contents(namespace);
        let mut grants = contents.into_iter().flat_map(|contents| contents.reference_grants.values());
        grants.any(|grant| {
            let to = grant.to.iter().filter(|it| it.group.is_empty() && it.kind == "Service");
            grant.from.iter().any(from)
                && to.into_iter().any(|it| it.name.as_deref().is_none_or(|own| own == name))
        })
    }
}
