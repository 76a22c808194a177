//! Gateways of the class `ambit-waypoint`, and which services and workloads are bound to them.
//!
//! A label names a Gateway; the nearest one counts, so a Service's or pod's own before its namespace's. The
//! waypoint is the Service of the Gateway's name and namespace. A binding acts from the moment on in which
//! the Gateway was programmed for the first time: a ready endpoint of that Service was seen. See
//! docs/decisions/311.
//!
//! Entry points: [`of_service`], [`of_workload`], [`of_entry`], [`is_ready`] and [`standing`].

mod listeners;

use std::collections::BTreeMap;

use super::authorization;
use super::condition::Condition;
use super::object::{
    AllowedNamespaces, Gateway, Kind, ObjectKey, PolicyAction, Service, ServiceEntry, TargetRef,
};
use super::service;
use super::settings::Settings;
use super::standing::{Standing, Statement, WAYPOINT_CLASS};
use super::store::{Labelled, Store};
use crate::inbound::HBONE_PORT;
use crate::mesh::Mesh;
use crate::model::{Health, PortMapping, ServiceKey, Waypoint, WaypointDestination, WaypointState, Workload};

/// A label of namespaces, Services and pods: names a Gateway; `none` opts out.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// A label beside it: the Gateway's namespace, where it is another.
pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// A label of a Gateway: what connections are asked for that it serves.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// On a Gateway: the service account of its waypoint, where it is not the Gateway's name.
const SERVICE_ACCOUNT: &str = "ambit.dev/service-account";
/// Our own condition: never taken back, so that restarts know it.
const FIRST_PROGRAMMED: &str = "ambit.dev/FirstProgrammed";

/// A Gateway as a label names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Traffic {
    Service,
    Workload,
}

/// What is to be bound.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    /// The object's own.
    namespace: &'a str,
    traffic: Traffic,
}

/// The Gateway that an object's labels name, or else its namespace's.
pub(super) fn named<'a>(
    store: &'a Store,
    namespace: &'a str,
    label: impl Fn(&'static str) -> Option<&'a str>,
) -> Option<Named<'a>> {
    let object = store.contents(namespace).and_then(|contents| contents.namespace.as_ref());
    let of_namespace =
        |name: &str| object.and_then(|object| object.metadata.labels.get(name)).map(String::as_str);
    let (name, other) = match label(USE_WAYPOINT) {
        Some(own) => (own, label(USE_WAYPOINT_NAMESPACE)),
        None => (of_namespace(USE_WAYPOINT)?, of_namespace(USE_WAYPOINT_NAMESPACE)),
    };
    let namespace = other.filter(|other| !other.is_empty()).unwrap_or(namespace);
    (name != "none" && !name.is_empty()).then_some(Named { namespace, name })
}

/// The binding of a Service. A waypoint's own Service has none.
pub(super) fn of_service(store: &Store, settings: &Settings, service: &Service) -> Option<Waypoint> {
    let metadata = &service.metadata;
    if waypoint_gateway(store, &metadata.namespace, &metadata.name).is_some() {
        return None;
    }
    let label = |name: &str| metadata.labels.get(name).map(String::as_str);
    let target = ("Service", metadata.name.as_str());
    let asked = Asked { namespace: &metadata.namespace, traffic: Traffic::Service };
    binding(store, settings, named(store, &metadata.namespace, label)?, asked, |policies| {
        policies.target(&metadata.namespace, target)
    })
}

/// The binding of a ServiceEntry's hosts.
pub(super) fn of_entry(store: &Store, settings: &Settings, entry: &ServiceEntry) -> Option<Waypoint> {
    let metadata = &entry.metadata;
    let label = |name: &str| metadata.labels.get(name).map(String::as_str);
    let target = ("ServiceEntry", metadata.name.as_str());
    let asked = Asked { namespace: &metadata.namespace, traffic: Traffic::Service };
    binding(store, settings, named(store, &metadata.namespace, label)?, asked, |policies| {
        policies.target(&metadata.namespace, target)
    })
}

/// The binding of a pod or workload entry. The waypoint's own endpoints have none.
pub(super) fn of_workload(
    store: &Store,
    settings: &Settings,
    namespace: &str,
    labels: &impl Labelled,
    services: &BTreeMap<ServiceKey, Vec<PortMapping>>,
) -> Option<Waypoint> {
    let named = named(store, namespace, |name| labels.label(name))?;
    let gateways = store.contents(namespace).into_iter().flat_map(|contents| contents.gateways.values());
    let mut own = gateways.filter(|gateway| gateway.class == WAYPOINT_CLASS);
    if own.any(|gateway| services.contains_key(&service_key(gateway, settings))) {
        return None;
    }
    binding(store, settings, named, Asked { namespace, traffic: Traffic::Workload }, |_| false)
}

/// What a Service should know whose label, or its namespace's, names no Gateway that serves it.
pub(super) fn service_unbound(store: &Store, key: &ObjectKey, service: &Service) -> Option<Condition> {
    let metadata = &service.metadata;
    if waypoint_gateway(store, &metadata.namespace, &metadata.name).is_some() {
        return None;
    }
    let named = named(store, &metadata.namespace, |name| metadata.labels.get(name).map(String::as_str))?;
    unbound(store, key, &named, Traffic::Service)
}

/// The same of a ServiceEntry.
pub(super) fn entry_unbound(store: &Store, key: &ObjectKey, entry: &ServiceEntry) -> Option<Condition> {
    let labels = &entry.metadata.labels;
    let named = named(store, &key.namespace, |name| labels.get(name).map(String::as_str))?;
    unbound(store, key, &named, Traffic::Service)
}

/// The same of a pod or workload entry, where its own label asks for it. Its namespace's label means Services
/// first, and most waypoints serve no others.
pub(super) fn workload_unbound(store: &Store, key: &ObjectKey, labels: &impl Labelled) -> Option<Condition> {
    labels.label(USE_WAYPOINT)?;
    unbound(store, key, &named(store, &key.namespace, |name| labels.label(name))?, Traffic::Workload)
}

fn unbound(store: &Store, key: &ObjectKey, named: &Named<'_>, traffic: Traffic) -> Option<Condition> {
    let Named { namespace, name } = named;
    let message = match waypoint_gateway(store, namespace, name) {
        None => format!("there is no Gateway {namespace}/{name} of class {WAYPOINT_CLASS}"),
        Some(gateway) if !admits(store, gateway, &key.namespace) => {
            format!("the allowedRoutes of Gateway {namespace}/{name} do not admit this namespace")
        }
        Some(gateway) if !serves(gateway, traffic) => {
            let to = if traffic == Traffic::Service { "Services" } else { "workloads" };
            format!("Gateway {namespace}/{name} does not serve connections to {to} ({WAYPOINT_FOR})")
        }
        Some(_) => return None,
    };
    Some(Condition {
        object: key.clone(),
        field: Some(format!("metadata.labels[{USE_WAYPOINT}]")),
        accepted: true,
        message: format!("{message}: connections pass no waypoint"),
    })
}

fn binding(
    store: &Store,
    settings: &Settings,
    named: Named<'_>,
    asked: Asked<'_>,
    targeted: impl Fn(&Policies<'_>) -> bool,
) -> Option<Waypoint> {
    let gateway = waypoint_gateway(store, named.namespace, named.name)?;
    if !admits(store, gateway, asked.namespace) || !serves(gateway, asked.traffic) {
        return None;
    }
    let policies = Policies { store, settings };
    let state = if store.was_programmed(&key(gateway)) {
        WaypointState::Programmed
    } else if targeted(&policies) || policies.target_gateway(gateway) {
        WaypointState::Awaited
    } else {
        WaypointState::Pending
    };
    Some(Waypoint {
        destination: WaypointDestination::Hostname(service_key(gateway, settings)),
        hbone_port: hbone_port(gateway),
        service_account: Some(account(gateway).into()),
        state,
    })
}

/// A Gateway of the mesh's class.
pub(super) fn waypoint_gateway<'a>(store: &'a Store, namespace: &str, name: &str) -> Option<&'a Gateway> {
    store.gateway(namespace, name).filter(|gateway| gateway.class == WAYPOINT_CLASS)
}

pub(super) fn key(gateway: &Gateway) -> ObjectKey {
    let metadata = &gateway.metadata;
    ObjectKey { kind: Kind::Gateway, namespace: metadata.namespace.clone(), name: metadata.name.clone() }
}

pub(super) fn service_key(gateway: &Gateway, settings: &Settings) -> ServiceKey {
    service::key(&gateway.metadata.namespace, &gateway.metadata.name, settings)
}

fn hbone_port(gateway: &Gateway) -> u16 {
    gateway.hbone().map_or(HBONE_PORT, |listener| listener.port)
}

/// Whether a Gateway's `allowedRoutes` let objects of a namespace be bound to it, as in Istio.
fn admits(store: &Store, gateway: &Gateway, namespace: &str) -> bool {
    let object = store.contents(namespace).and_then(|contents| contents.namespace.as_ref());
    let labels = object.map(|object| &object.metadata.labels);
    let allowed = gateway.hbone().map_or(&AllowedNamespaces::Same, |listener| &listener.namespaces);
    allowed.admit(&gateway.metadata.namespace, namespace, labels)
}

fn account(gateway: &Gateway) -> &str {
    let metadata = &gateway.metadata;
    metadata.annotations.get(SERVICE_ACCOUNT).filter(|it| !it.is_empty()).unwrap_or(&metadata.name)
}

fn serves(gateway: &Gateway, traffic: Traffic) -> bool {
    match gateway.metadata.labels.get(WAYPOINT_FOR).map(String::as_str) {
        Some("all") => true,
        Some("workload") => traffic == Traffic::Workload,
        Some("none") => false,
        // The default, also for values that mean nothing.
        _ => traffic == Traffic::Service,
    }
}

/// Policies that only a waypoint enforces.
struct Policies<'a> {
    store: &'a Store,
    settings: &'a Settings,
}

impl Policies<'_> {
    fn any(&self, namespace: &str, targets: impl Fn(&TargetRef) -> bool) -> bool {
        let contents = self.store.contents(namespace).into_iter();
        let policies = contents.flat_map(|contents| contents.authorization_policies.values());
        // One that cannot be read may target anything of its namespace.
        let unknown = |target: &TargetRef| *target == TargetRef::default();
        policies.into_iter().filter(|policy| policy.action != PolicyAction::Audit).any(|policy| {
            authorization::is_for_waypoints(policy)
                && policy.target_refs.iter().any(|it| unknown(it) || targets(it))
        })
    }

    fn target(&self, namespace: &str, (kind, name): (&str, &str)) -> bool {
        self.any(namespace, |target| target.kind == kind && target.name == name)
    }

    fn target_gateway(&self, gateway: &Gateway) -> bool {
        let Gateway { metadata, .. } = gateway;
        self.target(&metadata.namespace, ("Gateway", &metadata.name))
            || self.any(&self.settings.root_namespace, |target| target.kind == "GatewayClass")
    }
}

/// Whether a waypoint has an endpoint that peers can use: ready, listening, and with the account that they
/// expect.
pub(super) fn is_ready(gateway: &Gateway, mesh: &Mesh, settings: &Settings) -> bool {
    unready(gateway, mesh, settings).is_none()
}

/// Why it has none.
fn unready(gateway: &Gateway, mesh: &Mesh, settings: &Settings) -> Option<String> {
    let (key, port) = (service_key(gateway, settings), hbone_port(gateway));
    let Some(service) = mesh.service(&key) else { return Some(format!("there is no Service {key}")) };
    if service.port(port).is_none() {
        return Some(format!("Service {key} has no port {port}"));
    }
    let account = account(gateway);
    let usable = |workload: &Workload| workload.health != Health::Unhealthy && !workload.addresses.is_empty();
    let mut foreign = None;
    for workload in mesh.endpoints(&key).filter(|workload| usable(workload)) {
        if *workload.service_account != *account || *workload.namespace != *key.namespace {
            foreign = Some(&workload.uid);
        } else if workload.target_port(service, port).is_some() {
            return None;
        }
    }
    Some(match foreign {
        Some(uid) => format!("{uid} does not have the service account {account}, which clients expect"),
        None => format!("Service {key} has no ready endpoint for port {port}"),
    })
}

/// The status of a waypoint's Gateway.
pub(super) fn standing(
    gateway: &Gateway,
    store: &Store,
    mesh: &Mesh,
    settings: &Settings,
) -> (Standing, Vec<Condition>) {
    let object = key(gateway);
    let unready = unready(gateway, mesh, settings);
    let mut conditions = vec![listeners::accepted(gateway)];
    let listeners = listeners::standings(gateway, unready.as_deref());
    conditions.push(match &unready {
        None => Statement::new("Programmed", true, "Programmed", "a ready endpoint serves"),
        Some(why) => Statement::new("Programmed", false, "Pending", why.clone()),
    });
    if store.was_programmed(&object) {
        let message = "bindings act: connections pass the waypoint, or fail";
        conditions.push(Statement::new(FIRST_PROGRAMMED, true, "Programmed", message));
    }
    let service = service_key(gateway, settings);
    let ips =
        mesh.service(&service).into_iter().flat_map(|service| &service.addresses).map(ToString::to_string);
    let addresses = ips.chain([service.hostname.to_string()]).collect();
    let said = Condition {
        object,
        field: None,
        accepted: true,
        message: unready.map(|why| format!("not programmed: {why}")).unwrap_or_default(),
    };
    (Standing::Gateway { conditions, addresses, listeners }, vec![said])
}
