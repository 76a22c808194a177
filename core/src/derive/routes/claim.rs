//! Which routes of a Service have which of its ports: [`Claims`].
//!
//! A port has routes of one kind for the same clients, that of [`RouteKind`]'s order that comes first; of
//! routes of connections that mean the same ones the oldest. See docs/decisions/312 and 317.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::object::{Metadata, Service, ServicePort};
use super::super::service;
use super::super::store::Store;
use super::Lookup;
use super::parent::{is_service, namespace, port};
use crate::model::AppProtocol;
use crate::route::{Attached, Route, RouteKind, ServerNameMatch};

/// What the routes of one Service want of its ports.
pub(super) struct Claims<'a> {
    service: &'a Service,
    wanted: Vec<Wanted>,
    /// The kind of routes of a port for clients of a scope.
    kinds: BTreeMap<(Scope, u16), RouteKind>,
    /// The oldest route of connections of that kind, by the names that it means; `None`: all of them.
    holders: BTreeMap<(Scope, u16), Vec<Holder>>,
}

/// A name of connections, and the route that serves them.
type Holder = (Option<ServerNameMatch>, Arc<Route>);

/// A consumer's namespace, or all clients.
type Scope = Option<Arc<str>>;

/// One attachment of an accepted route, before routes are held against each other.
struct Wanted {
    route: Arc<Route>,
    port: Option<u16>,
    scope: Scope,
}

impl<'a> Claims<'a> {
    pub(super) fn of(store: &Store, service: &'a Service, compiled: Lookup<'_>) -> Self {
        let mut wanted = wanted(store, service, compiled);
        wanted.sort_by_cached_key(|it| (it.route.created, it.route.key.clone()));
        let mut claims = Self { service, wanted, kinds: BTreeMap::new(), holders: BTreeMap::new() };
        for it in &claims.wanted {
            for port in ports(service, it.port).filter(|port| may_serve(it.route.key.kind, port)) {
                let kind = claims.kinds.entry((it.scope.clone(), port.port)).or_insert(it.route.key.kind);
                *kind = (*kind).min(it.route.key.kind);
            }
        }
        for it in claims.wanted.iter().filter(|it| !it.route.key.kind.is_of_requests()) {
            for port in ports(service, it.port).map(|port| port.port) {
                let place = (it.scope.clone(), port);
                if claims.kinds.get(&place) != Some(&it.route.key.kind) {
                    continue;
                }
                let holders = claims.holders.entry(place).or_default();
                for name in names(&it.route) {
                    if !holders.iter().any(|(held, _)| *held == name) {
                        holders.push((name, it.route.clone()));
                    }
                }
            }
        }
        claims
    }

    /// The routes with the ports that they have; in place of every port nothing is named.
    pub(super) fn attached(&self) -> Vec<Attached> {
        let mut attached = Vec::new();
        for it in &self.wanted {
            let at = |port| Attached { route: it.route.clone(), port, consumer: it.scope.clone() };
            let has = |port: &u16| self.refusal(&it.route, *port, it.scope.as_ref()).is_none();
            let all: Vec<u16> = ports(self.service, it.port).map(|port| port.port).collect();
            let own: Vec<u16> = all.iter().copied().filter(has).collect();
            if own.len() == all.len() {
                attached.push(at(it.port));
            } else {
                attached.extend(own.into_iter().map(|port| at(Some(port))));
            }
        }
        attached
    }

    /// Why a route has none of the ports that one of its parents means; none where it has one.
    pub(super) fn lost(
        &self,
        route: &Arc<Route>,
        port: Option<u16>,
        consumer: Option<&str>,
    ) -> Option<String> {
        let scope: Scope = consumer.map(Into::into);
        let mut refusals = ports(self.service, port).map(|it| self.refusal(route, it.port, scope.as_ref()));
        let first = refusals.next()??;
        refusals.all(|it| it.is_some()).then_some(first)
    }

    /// Why a route does not have a port.
    fn refusal(&self, route: &Arc<Route>, port: u16, scope: Option<&Arc<str>>) -> Option<String> {
        let place = (scope.cloned(), port);
        let kind = *self.kinds.get(&place)?;
        if kind != route.key.kind {
            let article = if kind == RouteKind::Http { "an" } else { "a" };
            let message =
                format!("{article} {} serves this port, and a port has routes of one kind", kind.name());
            return Some(message);
        }
        let holders = self.holders.get(&place)?;
        let other = |name: &Option<ServerNameMatch>| {
            let holder = holders.iter().find(|(held, _)| held == name).map(|(_, holder)| holder);
            holder.filter(|holder| holder.key != route.key)
        };
        let mut others = names(route).map(|name| other(&name));
        let first = others.next()??.clone();
        let message = || format!("the older {} serves the same connections", first.key);
        others.all(|it| it.is_some()).then(message)
    }
}

fn wanted(store: &Store, service: &Service, compiled: Lookup<'_>) -> Vec<Wanted> {
    let Metadata { namespace: own, name, .. } = &service.metadata;
    let mut found = Vec::new();
    for key in store.routes_with(own, name) {
        let Some(object) = store.route(key) else { continue };
        let Some(route) = compiled(key).and_then(|compiled| compiled.route.as_ref()) else { continue };
        let parents = object.parents.iter().filter(|it| is_service(it) && it.name == *name);
        for parent in parents.filter(|it| namespace(it, object) == own) {
            let Ok(port) = port(parent, service) else { continue };
            let scope = (key.namespace != *own).then(|| Arc::from(key.namespace.as_str()));
            found.push(Wanted { route: route.clone(), port, scope });
        }
    }
    found
}

/// The ports that a parent means.
fn ports(service: &Service, port: Option<u16>) -> impl Iterator<Item = &ServicePort> {
    service::tcp_ports(service).filter(move |it| port.is_none_or(|port| port == it.port))
}

/// Requests are read at no port that is declared to carry something else, so no route of requests takes one.
fn may_serve(kind: RouteKind, port: &ServicePort) -> bool {
    !kind.is_of_requests() || !matches!(service::app_protocol(port), AppProtocol::Tcp | AppProtocol::Tls)
}

/// The names that a route of connections means; `None`: all.
fn names(route: &Route) -> impl Iterator<Item = Option<ServerNameMatch>> {
    let all = route.server_names.is_empty().then_some(None);
    route.server_names.iter().cloned().map(Some).chain(all)
}
