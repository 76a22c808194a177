//! Which routes of a Service have which of its ports: [`Claims`], and those of all Services: [`AllClaims`].
//!
//! A port has routes of one kind for the same clients, that of [`RouteKind`]'s order that comes first; of
//! routes of connections that mean the same ones the oldest. See docs/decisions/312 and 317.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::object::{Metadata, Service, ServicePort};
use super::super::service;
use super::super::store::Store;
use super::compiled::Lookup;
use super::parent::{is_service, namespace, port};
use crate::model::AppProtocol;
use crate::route::{Attached, Route, RouteKind, ServerNameMatch};

/// What the routes of Services want of their ports, gathered once for each Service.
pub(in crate::derive) struct AllClaims<'a> {
    pub(super) store: &'a Store,
    pub(super) compiled: Lookup<'a>,
    of: BTreeMap<(&'a str, &'a str), Claims<'a>>,
}

impl<'a> AllClaims<'a> {
    pub(in crate::derive) fn new(store: &'a Store, compiled: Lookup<'a>) -> Self {
        Self { store, compiled, of: BTreeMap::new() }
    }

    pub(super) fn of(&mut self, service: &'a Service) -> &Claims<'a> {
        let key = (service.metadata.namespace.as_str(), service.metadata.name.as_str());
        self.of.entry(key).or_insert_with(|| Claims::of(self.store, service, self.compiled))
    }
}

/// What the routes of one Service want of its ports.
pub(super) struct Claims<'a> {
    service: &'a Service,
    wanted: Vec<Wanted>,
    /// The kind of routes of a port for clients of a scope.
    kinds: BTreeMap<(Scope, u16), RouteKind>,
    /// The oldest route of connections of that kind, by the names that it means; `None`: all of them.
    holders: BTreeMap<(Scope, u16), BTreeMap<Option<ServerNameMatch>, Arc<Route>>>,
}

/// Why a route does not have a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// As the status names it.
    pub(super) reason: &'static str,
    pub(super) message: String,
}

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
                    holders.entry(name).or_insert_with(|| it.route.clone());
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
            let has = |port: &&ServicePort| self.refusal(&it.route, port, it.scope.as_ref()).is_none();
            let all: Vec<&ServicePort> = ports(self.service, it.port).collect();
            let own: Vec<u16> = all.iter().copied().filter(has).map(|port| port.port).collect();
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
    ) -> Option<Refusal> {
        let scope: Scope = consumer.map(Into::into);
        let mut refusals = ports(self.service, port).map(|port| self.refusal(route, port, scope.as_ref()));
        let first = refusals.next()??;
        refusals.all(|it| it.is_some()).then_some(first)
    }

    /// What other routes have of the ports that one of a route's parents means, where it has others. A port
    /// that carries something else is nothing that it lost.
    pub(super) fn partly_lost(
        &self,
        route: &Arc<Route>,
        port: Option<u16>,
        consumer: Option<&str>,
    ) -> String {
        let scope: Scope = consumer.map(Into::into);
        let usable = ports(self.service, port).filter(|port| may_serve(route.key.kind, port));
        let losses = usable.flat_map(|port| {
            let refusal = self.refusal(route, port, scope.as_ref()).map(|it| it.message);
            let losses = refusal.map_or_else(|| self.lost_names(route, port, scope.as_ref()), |it| vec![it]);
            losses.into_iter().map(|loss| format!("port {}: {loss}", port.port))
        });
        losses.collect::<Vec<_>>().join("; ")
    }

    fn refusal(&self, route: &Arc<Route>, port: &ServicePort, scope: Option<&Arc<str>>) -> Option<Refusal> {
        let refused = |reason, message| Some(Refusal { reason, message });
        if let Some(protocol) = other_protocol(route.key.kind, port) {
            let message =
                format!("port {} is declared as {protocol}, so no requests are read there", port.port);
            return refused("UnsupportedProtocol", message);
        }
        let place = (scope.cloned(), port.port);
        let kind = *self.kinds.get(&place)?;
        if kind != route.key.kind {
            let article = if kind == RouteKind::Http { "an" } else { "a" };
            let message =
                format!("{article} {} serves this port, and a port has routes of one kind", kind.name());
            return refused("Conflicted", message);
        }
        let mut older = self.older(route, &place).map(|(_, older)| older);
        let first = older.next()??;
        let message = format!("the older {} serves the same connections", first.key);
        older.all(|it| it.is_some()).then_some(Refusal { reason: "Conflicted", message })
    }

    /// The server names of a route that an older one serves at a port.
    fn lost_names(&self, route: &Arc<Route>, port: &ServicePort, scope: Option<&Arc<str>>) -> Vec<String> {
        let place = (scope.cloned(), port.port);
        let lost = self
            .older(route, &place)
            .filter_map(|(name, older)| Some(format!("the older {} serves {}", older?.key, name?)));
        lost.collect()
    }

    /// The names of connections that a route means, and the older route that has each.
    fn older<'b>(
        &'b self,
        route: &'b Route,
        place: &(Scope, u16),
    ) -> impl Iterator<Item = (Option<ServerNameMatch>, Option<&'b Arc<Route>>)> {
        let holders = self.holders.get(place);
        names(route).map(move |name| {
            let holder = holders.and_then(|holders| holders.get(&name));
            (name, holder.filter(|holder| holder.key != route.key))
        })
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

/// What a port is declared to carry instead of requests, which no route of requests takes.
fn other_protocol(kind: RouteKind, port: &ServicePort) -> Option<&'static str> {
    match service::app_protocol(port) {
        AppProtocol::Tcp if kind.is_of_requests() => Some("TCP"),
        AppProtocol::Tls if kind.is_of_requests() => Some("TLS"),
        _ => None,
    }
}

fn may_serve(kind: RouteKind, port: &ServicePort) -> bool {
    other_protocol(kind, port).is_none()
}

/// The names that a route of connections means; `None`: all.
fn names(route: &Route) -> impl Iterator<Item = Option<ServerNameMatch>> {
    let all = route.server_names.is_empty().then_some(None);
    route.server_names.iter().cloned().map(Some).chain(all)
}
