//! Routes of every kind → the routes of services, and their status.
//!
//! [`compile`] makes what a waypoint runs of one route object, [`attached`] gathers the routes of one
//! Service, and [`standing`] is what the object's status says at each of its parents. Only Services are
//! parents here: routes of Gateways are an ingress' affair. See docs/decisions/312 and 317.

mod backend;
mod claim;
mod compiled;
mod parent;

pub(super) use self::claim::AllClaims;
pub(super) use self::compiled::{Compiled, Lookup};
pub(super) use self::parent::parents;

use std::sync::Arc;

use super::condition::Condition;
use super::object::{
    Kind, Metadata, ObjectKey, ParentRef, RouteFilter, RouteObject, RouteRule, RuleEffect, Service,
};
use super::settings::Settings;
use super::standing::{ParentStanding, Standing, Statement};
use super::store::Store;
use super::waypoint;
use crate::model::{ServiceKey, WaypointState};
use crate::route::{Backend, Backends, Filter, Mirror, Route, RouteKey, Rule, ServiceRoutes, Target};
use backend::{Resolver, Unresolved};
use claim::Claims;
use parent::{is_service, namespace, port};

/// Compiles a route object.
pub(super) fn compile(object: &RouteObject, store: &Store, settings: &Settings) -> Compiled {
    let mut resolver = Resolver::new(object, store, settings);
    let mut compiled = Compiled {
        route: None,
        dropped: Vec::new(),
        incompatible: true,
        unresolved: Vec::new(),
        notes: Vec::new(),
    };
    let mut rules = Vec::new();
    for (index, rule) in object.rules.iter().enumerate() {
        let worst = rule.mistakes.iter().map(|mistake| mistake.effect).max();
        let said = |effects: &[RuleEffect]| {
            let of = rule.mistakes.iter().filter(|mistake| effects.contains(&mistake.effect));
            of.map(|mistake| format!("{}: {}", mistake.field, mistake.message)).collect::<Vec<_>>().join("; ")
        };
        match worst {
            Some(RuleEffect::Dropped | RuleEffect::Incompatible) => {
                compiled.incompatible &= worst == Some(RuleEffect::Incompatible);
                let why = said(&[RuleEffect::Dropped, RuleEffect::Incompatible]);
                compiled.dropped.push(format!("Dropped Rule {index}: {why}"));
            }
            Some(RuleEffect::Fails) => rules.push(failing(rule, &mut resolver, said(&[RuleEffect::Fails]))),
            None => rules.push(self::rule(rule, &mut resolver)),
        }
    }
    if !object.hostnames.is_empty() {
        let message = "mean nothing to a mesh: requests are routed by the Service that was dialled";
        compiled.notes.push(("spec.hostnames".to_owned(), message.to_owned()));
    }
    if !object.kind.is_of_requests() && object.rules.len() > 1 {
        let message = "the first rule serves every connection, so the others are never reached";
        compiled.notes.push(("spec.rules".to_owned(), message.to_owned()));
    }
    compiled.unresolved = resolver.unresolved;
    if !rules.is_empty() {
        let key = route_key(object);
        let server_names = object.server_names.clone();
        let created = object.metadata.created.unwrap_or(i64::MAX);
        compiled.route = Some(Arc::new(Route { key, created, server_names, rules }));
    }
    compiled
}

fn route_key(object: &RouteObject) -> RouteKey {
    let Metadata { namespace, name, .. } = &object.metadata;
    RouteKey { kind: object.kind, namespace: namespace.as_str().into(), name: name.as_str().into() }
}

fn rule(rule: &RouteRule, resolver: &mut Resolver<'_>) -> Rule {
    let filters = rule.filters.iter().map(|filter| match filter {
        RouteFilter::Ready(filter) => filter.clone(),
        RouteFilter::Mirror { backend, numerator, denominator } => Filter::Mirror(Mirror {
            target: resolver.target(backend),
            numerator: *numerator,
            denominator: *denominator,
        }),
    });
    let filters = filters.collect();
    let backends = rule.backends.iter().map(|backend| Backend {
        target: resolver.target(&backend.target),
        weight: backend.weight,
        request_headers: backend.request_headers.clone(),
        response_headers: backend.response_headers.clone(),
    });
    let backends = Backends::new(backends.collect());
    Rule { filters, backends, timeouts: rule.timeouts, retry: rule.retry.clone(), ..empty(rule) }
}

/// A rule with a filter that cannot be followed: its requests fail, rather than go without the filter.
fn failing(rule: &RouteRule, resolver: &mut Resolver<'_>, why: String) -> Rule {
    let target = Target::Invalid { reason: why.as_str().into() };
    resolver.unresolved.push(Unresolved { reason: "InvalidKind", message: why });
    let error = Backend { target, weight: 1, request_headers: Vec::new(), response_headers: Vec::new() };
    Rule { backends: Backends::new(vec![error]), ..empty(rule) }
}

fn empty(rule: &RouteRule) -> Rule {
    Rule {
        name: rule.name.as_deref().map(Into::into),
        matches: rule.matches.clone(),
        filters: Vec::new(),
        backends: Backends::default(),
        timeouts: crate::route::Timeouts::default(),
        retry: None,
    }
}

/// The routes of a Service; `None` where it has none.
pub(super) fn attached(
    key: &ServiceKey,
    service: &Service,
    store: &Store,
    compiled: Lookup<'_>,
) -> Option<ServiceRoutes> {
    let claims = Claims::of(store, service, compiled);
    let mut attached = claims.attached();
    attached.dedup();
    (!attached.is_empty()).then(|| ServiceRoutes::new(key.clone(), attached))
}

/// What the status of a route says at each Service that is its parent, and what is logged.
pub(super) fn standing(
    key: &ObjectKey,
    object: &RouteObject,
    settings: &Settings,
    claims: &mut AllClaims<'_>,
) -> (Standing, Vec<Condition>) {
    let compiled = claims.compiled;
    let Some(own) = compiled(key) else { return (Standing::Route(Vec::new()), Vec::new()) };
    let mut parents = Vec::new();
    let mut said = Vec::new();
    let services = object.parents.iter().enumerate().filter(|(_, parent)| is_service(parent));
    for (index, parent) in services {
        let judged = Judged::of(parent, object, own, settings, claims);
        if !judged.message.is_empty() {
            said.push(Condition {
                object: key.clone(),
                field: Some(format!("spec.parentRefs[{index}]")),
                accepted: judged.reason == "Accepted",
                message: judged.message.clone(),
            });
        }
        parents.push(ParentStanding { parent: parent.clone(), conditions: judged.statements(own) });
    }
    let note = |field: Option<String>, message: String| Condition {
        object: key.clone(),
        field,
        accepted: true,
        message,
    };
    said.extend(own.dropped.iter().map(|message| note(None, message.clone())));
    said.extend(own.unresolved.iter().map(|it| note(None, it.message.clone())));
    said.extend(own.notes.iter().map(|(field, message)| note(Some(field.clone()), message.clone())));
    if said.is_empty() {
        said.push(Condition::accepted(key.clone()));
    }
    (Standing::Route(parents), said)
}

/// How a route stands at one parent.
struct Judged {
    /// `Accepted`, or why it is not.
    reason: &'static str,
    message: String,
    /// Of our own condition: whether a waypoint applies the route.
    bound: Option<(bool, &'static str, String)>,
}

impl Judged {
    fn of(
        parent: &ParentRef,
        object: &RouteObject,
        own: &Compiled,
        settings: &Settings,
        claims: &mut AllClaims<'_>,
    ) -> Self {
        let store = claims.store;
        let refused = |reason, message: String| Self { reason, message, bound: None };
        let namespace = namespace(parent, object);
        let service =
            ObjectKey { kind: Kind::Service, namespace: namespace.to_owned(), name: parent.name.clone() };
        let Some(service) = store.service(&service) else {
            return refused("NoMatchingParent", format!("there is no Service {namespace}/{}", parent.name));
        };
        let port = match port(parent, service) {
            Ok(port) => port,
            Err(message) => return refused("NoMatchingParent", message),
        };
        let Some(route) = &own.route else {
            let reason = if own.incompatible { "IncompatibleFilters" } else { "UnsupportedValue" };
            return refused(reason, own.dropped.join("; "));
        };
        let consumer = (object.metadata.namespace != namespace).then_some(object.metadata.namespace.as_str());
        let claims = claims.of(service);
        if let Some(lost) = claims.lost(route, port, consumer) {
            return refused(lost.reason, lost.message);
        }
        let partly_lost = claims.partly_lost(route, port, consumer);
        let name = format!("Service {namespace}/{}", parent.name);
        let bound = match waypoint::of_service(store, settings, service).map(|waypoint| waypoint.state) {
            Some(WaypointState::Programmed) => (true, "Bound", String::new()),
            Some(WaypointState::Pending | WaypointState::Awaited) => {
                (false, "NotProgrammed", format!("the waypoint of {name} is not programmed yet"))
            }
            None => (false, "NoWaypoint", format!("{name} has no waypoint, so nothing applies this route")),
        };
        let said = [partly_lost, bound.2.clone()].into_iter().filter(|message| !message.is_empty());
        let message = said.collect::<Vec<_>>().join("; ");
        Self { reason: "Accepted", message, bound: Some(bound) }
    }

    fn statements(self, own: &Compiled) -> Vec<Statement> {
        let accepted = self.reason == "Accepted";
        let mut statements = vec![Statement::new("Accepted", accepted, self.reason, self.message)];
        statements.push(match own.unresolved.first() {
            None => Statement::new("ResolvedRefs", true, "ResolvedRefs", ""),
            Some(first) => {
                let messages: Vec<&str> = own.unresolved.iter().map(|it| it.message.as_str()).collect();
                Statement::new("ResolvedRefs", false, first.reason, messages.join("; "))
            }
        });
        if accepted && !own.dropped.is_empty() {
            let message = own.dropped.join("; ");
            statements.push(Statement::new("PartiallyInvalid", true, "UnsupportedValue", message));
        }
        if let Some((holds, reason, message)) = self.bound {
            statements.push(Statement::new("ambit.dev/WaypointBound", holds, reason, message));
        }
        statements
    }
}
