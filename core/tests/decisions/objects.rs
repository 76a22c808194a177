//! Short ways to write objects, and a world with the mesh that follows from it.

use ambit_core::derive::{
    AuthorizationPolicy, BackendRef, BackendTarget, Condition, ContainerPort, Derived, Gateway, Kind,
    Listener, Metadata, MtlsMode, Namespace, Object, ObjectEvent, ObjectKey, ParentRef, PeerAuthentication,
    Phase, Pod, PolicyAction, PolicyRule, PortRef, RouteObject, RouteRule, Service, ServicePort, Settings,
    Transport, WAYPOINT_CLASS, World,
};
use ambit_core::mesh::{Mesh, Touched};
use ambit_core::policy::{Request, authorize};
use ambit_core::route::{Match, RouteKind};

use crate::build::{identity, ip, uid};

/// Metadata from `<namespace>/<name>` and labels.
pub(crate) fn metadata(name: &str, labels: &[(&str, &str)]) -> Metadata {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Metadata {
        namespace: namespace.into(),
        name: name.into(),
        labels: labels.collect(),
        ..Metadata::default()
    }
}

pub(crate) fn key(kind: Kind, name: &str) -> ObjectKey {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    ObjectKey { kind, namespace: namespace.into(), name: name.into() }
}

/// A namespace; `mode` is its dataplane label, empty for none.
pub(crate) fn namespace(name: &str, mode: &str) -> Object {
    let labels: &[(&str, &str)] = if mode.is_empty() { &[] } else { &[("istio.io/dataplane-mode", mode)] };
    let metadata = Metadata { namespace: String::new(), ..metadata(&format!("/{name}"), labels) };
    Object::Namespace(Namespace { metadata, ..Namespace::default() })
}

/// A running, ready pod on node-a.
pub(crate) fn pod(name: &str, labels: &[(&str, &str)], addresses: &[&str]) -> Pod {
    Pod {
        metadata: metadata(name, labels),
        node: "node-a".into(),
        phase: Phase::Running,
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        ready: true,
        ..Pod::default()
    }
}

pub(crate) fn container_port(name: &str, port: u16) -> ContainerPort {
    ContainerPort { name: name.into(), port, transport: Transport::Tcp }
}

pub(crate) fn service_port(port: u16, target: &str) -> ServicePort {
    let target = target.parse().map_or_else(|_| PortRef::Name(target.into()), PortRef::Number);
    ServicePort { name: String::new(), port, target, transport: Transport::Tcp, app_protocol: String::new() }
}

pub(crate) fn service(
    name: &str,
    addresses: &[&str],
    selector: &[(&str, &str)],
    ports: Vec<ServicePort>,
) -> Service {
    Service {
        metadata: metadata(name, &[]),
        cluster_ips: addresses.iter().map(|text| ip(text)).collect(),
        selector: metadata(name, selector).labels,
        ports,
        ..Service::default()
    }
}

pub(crate) fn authorization(
    name: &str,
    selector: &[(&str, &str)],
    action: PolicyAction,
    rules: Vec<PolicyRule>,
) -> AuthorizationPolicy {
    AuthorizationPolicy {
        metadata: metadata(name, &[]),
        selector: metadata(name, selector).labels,
        action,
        rules,
        ..AuthorizationPolicy::default()
    }
}

/// A PeerAuthentication, made at the time `created`.
pub(crate) fn peer(
    name: &str,
    selector: &[(&str, &str)],
    mode: MtlsMode,
    ports: &[(u16, MtlsMode)],
    created: i64,
) -> PeerAuthentication {
    PeerAuthentication {
        metadata: Metadata { created: Some(created), ..metadata(name, &[]) },
        selector: metadata(name, selector).labels,
        mode,
        same_node_tls: None,
        port_modes: ports.iter().copied().collect(),
    }
}

pub(crate) fn put(object: Object) -> ObjectEvent {
    ObjectEvent::Put(Box::new(object))
}

/// A world, and the mesh that its changes made.
pub(crate) struct Lab {
    pub(crate) world: World,
    pub(crate) mesh: Mesh,
}

impl Lab {
    pub(crate) fn new(objects: impl IntoIterator<Item = Object>) -> Self {
        Self::with(Settings::default(), objects)
    }

    pub(crate) fn with(settings: Settings, objects: impl IntoIterator<Item = Object>) -> Self {
        let mut lab = Self { world: World::new(settings), mesh: Mesh::new() };
        lab.put(objects);
        lab
    }

    pub(crate) fn apply(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> (Derived, Touched) {
        let derived = self.world.apply(events);
        let touched = self.mesh.apply(derived.changes.clone());
        (derived, touched)
    }

    pub(crate) fn put(&mut self, objects: impl IntoIterator<Item = Object>) -> (Derived, Touched) {
        self.apply(objects.into_iter().map(put))
    }

    pub(crate) fn delete(&mut self, kind: Kind, name: &str) -> (Derived, Touched) {
        self.apply([ObjectEvent::Delete(key(kind, name))])
    }

    pub(crate) fn conditions(&self, kind: Kind, name: &str) -> Vec<&Condition> {
        let key = key(kind, name);
        self.world.conditions().filter(|condition| condition.object == key).collect()
    }
}

/// An enrolled namespace and one that is not, with pods.
pub(crate) fn shop() -> Vec<Object> {
    vec![
        namespace("shop", "ambient"),
        Object::Pod(pod("shop/cart", &[("app", "cart")], &["10.1.0.1"])),
        Object::Pod(pod("shop/api", &[("app", "api")], &["10.1.0.2"])),
        Object::Pod(pod("blog/cms", &[("app", "cart")], &["10.1.0.3"])),
    ]
}

/// The reason for which a peer is refused at a pod's port, or `permitted`.
pub(crate) fn ask(lab: &Lab, who: &str, destination: &str, port: u16) -> String {
    let address = lab.mesh.workload(&uid(destination)).expect("a workload").addresses[0];
    let who = (!who.is_empty()).then(|| identity(who));
    let peer =
        Request { identity: who.as_ref(), source: ip("10.1.0.7"), destination: (address, port).into() };
    match authorize(&lab.mesh, &uid(destination), &peer).outcome {
        Ok(_) => "permitted".to_owned(),
        Err(denial) => denial.reason().to_string(),
    }
}

/// What is said about an object: whether it is accepted, and about which field.
pub(crate) fn said(lab: &Lab, kind: Kind, name: &str) -> Vec<(bool, Option<String>)> {
    lab.conditions(kind, name).into_iter().map(|c| (c.accepted, c.field.clone())).collect()
}

/// A waypoint's Gateway, with labels.
pub(crate) fn gateway(name: &str, labels: &[(&str, &str)]) -> Gateway {
    Gateway {
        metadata: metadata(name, labels),
        class: WAYPOINT_CLASS.into(),
        listeners: vec![Listener::hbone("mesh", 15008)],
        was_programmed: false,
    }
}

/// The Service of a waypoint, and a pod behind it.
pub(crate) fn waypoint(name: &str, ready: bool) -> Vec<Object> {
    let (_, short) = name.split_once('/').expect("namespace/name");
    let selector = [("gateway", short)];
    let own = service(name, &["10.96.9.9"], &selector, vec![service_port(15008, "15008")]);
    let endpoint = pod(&format!("{name}-1"), &selector, &["10.1.9.9"]);
    let endpoint = Pod { service_account: short.into(), ready, ..endpoint };
    vec![Object::Service(own), Object::Pod(endpoint)]
}

/// A Service as a parent of routes.
pub(crate) fn parent(name: &str, port: Option<u16>) -> ParentRef {
    let (namespace, name) = match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, name),
    };
    ParentRef { kind: "Service".into(), namespace, name: name.into(), port, ..ParentRef::default() }
}

/// A port of a Service as a backend.
pub(crate) fn backend(name: &str, port: u16) -> BackendRef {
    let (namespace, name) = match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, name),
    };
    let target = BackendTarget {
        field: "backend".into(),
        kind: "Service".into(),
        namespace,
        name: name.into(),
        port: Some(port),
        ..BackendTarget::default()
    };
    BackendRef { target, weight: 1, ..BackendRef::default() }
}

/// A route with one rule for everything.
pub(crate) fn route(
    kind: RouteKind,
    name: &str,
    parents: Vec<ParentRef>,
    backends: Vec<BackendRef>,
) -> RouteObject {
    let rule = RouteRule { matches: vec![Match::any()], backends, ..RouteRule::default() };
    let metadata = metadata(name, &[]);
    let (hostnames, server_names) = (Vec::new(), Vec::new());
    RouteObject { kind, metadata, parents, hostnames, server_names, rules: vec![rule] }
}
