//! Bindings and routes derived in steps must come to what derivation from scratch comes to.

use std::collections::BTreeMap;

use ambit_core::derive::{
    AllowedNamespaces, Condition, Gateway, GrantFrom, GrantTo, LabelRequirement, LabelValue, Listener,
    Metadata, Namespace, Object, ObjectEvent, ObjectKey, Pod, PolicyAction, ReferenceGrant, Service,
    Settings, TargetRef, World,
};
use ambit_core::mesh::Mesh;
use ambit_core::model::WaypointState;
use ambit_core::route::RouteKind;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;

use crate::objects::{
    authorization, backend, gateway, metadata, parent, pod, put, route, service, service_port,
};

fn name() -> impl Strategy<Value = String> {
    (select(vec!["shop", "shop", "blog"]), select(vec!["a", "b", "wp"]))
        .prop_map(|(namespace, name)| format!("{namespace}/{name}"))
}

fn labels() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let own = option::of(select(vec!["wp", "wp", "wp", "a", "none"]));
    let other = option::weighted(0.2, select(vec!["shop", "blog"]));
    (own, other, select(vec!["x", "wp"])).prop_map(|(own, other, app)| {
        let own = own.map(|own| ("istio.io/use-waypoint", own));
        let other = other.map(|other| ("istio.io/use-waypoint-namespace", other));
        [("app", app)].into_iter().chain(own).chain(other).collect()
    })
}

fn a_namespace() -> impl Strategy<Value = Object> {
    (select(vec!["shop", "blog"]), labels()).prop_map(|(name, labels)| {
        let metadata = Metadata { namespace: String::new(), ..metadata(&format!("/{name}"), &labels) };
        Object::Namespace(Namespace { metadata, ..Namespace::default() })
    })
}

fn a_gateway() -> impl Strategy<Value = Object> {
    let serving = select(vec!["service", "service", "workload", "all", "all", "none"]);
    let names = select(vec!["shop/wp", "shop/wp", "blog/wp", "shop/a"]).prop_map(str::to_owned);
    let of_label = LabelRequirement { key: "app".into(), value: LabelValue::In(vec!["wp".into()]) };
    let allowed = select(vec![
        AllowedNamespaces::All,
        AllowedNamespaces::All,
        AllowedNamespaces::Same,
        AllowedNamespaces::Selected(vec![of_label]),
    ]);
    (names, serving, prop::bool::weighted(0.8), prop::bool::weighted(0.1), allowed).prop_map(
        |(name, serving, ours, was_programmed, namespaces)| {
            let base = gateway(&name, &[("istio.io/waypoint-for", serving)]);
            let class = if ours { base.class.clone() } else { "other".into() };
            let listeners = vec![Listener { namespaces, ..Listener::hbone("mesh", 15008) }];
            Object::Gateway(Gateway { class, was_programmed, listeners, ..base })
        },
    )
}

fn a_service() -> impl Strategy<Value = Object> {
    let ports = select(vec![vec![80], vec![80, 15008], vec![80, 15008], vec![81]]);
    (name(), labels(), ports, select(vec!["x", "wp"]), prop::bool::weighted(0.8)).prop_map(
        |(name, labels, ports, selected, addressed)| {
            let ports = ports.into_iter().map(|port| service_port(port, "8080")).collect();
            let addresses: &[&str] = if addressed { &["10.96.0.1"] } else { &[] };
            let base = service(&name, addresses, &[("app", selected)], ports);
            Object::Service(Service { metadata: metadata(&name, &labels), ..base })
        },
    )
}

fn a_pod() -> impl Strategy<Value = Object> {
    (name(), labels(), select(vec!["wp", "a", "wp"]), prop::bool::weighted(0.7)).prop_map(
        |(name, labels, account, ready)| {
            Object::Pod(Pod { service_account: account.into(), ready, ..pod(&name, &labels, &["10.1.0.1"]) })
        },
    )
}

fn a_route() -> impl Strategy<Value = Object> {
    let kind = select(vec![RouteKind::Http, RouteKind::Grpc, RouteKind::Tls, RouteKind::Tcp]);
    let ports = option::of(select(vec![80, 81]));
    let parents = vec((name(), ports), 1..3);
    (kind, name(), parents, vec((name(), select(vec![80, 81])), 0..3)).prop_map(
        |(kind, name, parents, backends)| {
            let parents = parents.into_iter().map(|(name, port)| parent(&name, port)).collect();
            let backends = backends.into_iter().map(|(name, port)| backend(&name, port)).collect();
            Object::Route(Box::new(route(kind, &name, parents, backends)))
        },
    )
}

fn a_grant() -> impl Strategy<Value = Object> {
    (name(), select(vec!["shop", "blog"]), option::of(select(vec!["a", "b"]))).prop_map(|(name, from, to)| {
        let group = "gateway.networking.k8s.io".to_owned();
        Object::ReferenceGrant(ReferenceGrant {
            metadata: metadata(&name, &[]),
            from: vec![GrantFrom { group, kind: "HTTPRoute".into(), namespace: from.into() }],
            to: vec![GrantTo { group: String::new(), kind: "Service".into(), name: to.map(str::to_owned) }],
        })
    })
}

fn a_policy() -> impl Strategy<Value = Object> {
    let kinds = select(vec!["Service", "Gateway", "GatewayClass", ""]);
    let namespaces = select(vec!["shop", "blog", "ambit-system"]);
    (namespaces, kinds, select(vec!["a", "b", "wp"])).prop_map(|(namespace, kind, target)| {
        let mut policy = authorization(&format!("{namespace}/p"), &[], PolicyAction::Deny, vec![]);
        let target = if kind.is_empty() { "" } else { target };
        policy.target_refs = vec![TargetRef { group: String::new(), kind: kind.into(), name: target.into() }];
        Object::AuthorizationPolicy(policy)
    })
}

fn an_object() -> impl Strategy<Value = Object> {
    prop_oneof![
        2 => a_namespace(),
        3 => a_gateway(),
        4 => a_service(),
        4 => a_pod(),
        5 => a_route(),
        1 => a_grant(),
        1 => a_policy(),
    ]
}

fn an_event() -> impl Strategy<Value = ObjectEvent> {
    prop_oneof![
        3 => an_object().prop_map(put),
        1 => an_object().prop_map(|object| ObjectEvent::Delete(object.key())),
    ]
}

fn conditions(world: &World) -> Vec<Condition> {
    world.conditions().cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn incremental_derivation_equals_full(batches in vec(vec(an_event(), 0..4), 0..16)) {
        let mut world = World::new(Settings::default());
        let mut mesh = Mesh::new();
        let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        for batch in batches {
            for event in &batch {
                match event {
                    ObjectEvent::Put(object) => drop(objects.insert(object.key(), (**object).clone())),
                    ObjectEvent::Delete(key) => drop(objects.remove(key)),
                }
            }
            let derived = world.apply(batch);
            for change in derived.changes {
                let touched = mesh.apply([change.clone()]);
                prop_assert!(!touched.is_empty(), "{:?} changes nothing", change);
            }
            // Which waypoints were ready once is history: it is given, as a status or a state folder gives
            // it.
            let mut scratch_world = World::new(Settings::default());
            scratch_world.remember_programmed(world.programmed());
            let mut scratch = Mesh::new();
            scratch.apply(scratch_world.apply(objects.values().cloned().map(put)).changes);
            prop_assert_eq!(&mesh, &scratch);
            prop_assert_eq!(world.standings(), scratch_world.standings());
            prop_assert_eq!(conditions(&world), conditions(&scratch_world));
        }
    }
}

#[test]
fn generated_objects_cover_all_cases() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut states = BTreeMap::new();
    let (mut routes, mut consumers, mut pods) = (0, 0, 0);
    for _ in 0..256 {
        let events = vec(an_event(), 60).new_tree(&mut runner).expect("a value").current();
        let mut mesh = Mesh::new();
        let mut world = World::new(Settings::default());
        for event in events {
            mesh.apply(world.apply([event]).changes);
        }
        for waypoint in mesh.services().filter_map(|service| service.waypoint.as_ref()) {
            *states.entry(format!("{:?}", waypoint.state)).or_insert(0) += 1;
        }
        let attached = || mesh.all_routes().flat_map(|routes| routes.attached());
        routes += attached().count();
        consumers += attached().filter(|it| it.consumer.is_some()).count();
        pods += mesh.workloads().filter(|workload| workload.waypoint.is_some()).count();
    }
    for state in [WaypointState::Programmed, WaypointState::Pending, WaypointState::Awaited] {
        let count = states.get(&format!("{state:?}")).copied().unwrap_or_default();
        assert!(count > 16, "{state:?}: {count}");
    }
    for (what, count) in [("routes", routes), ("consumers' routes", consumers), ("bound pods", pods)] {
        assert!(count > 32, "{what}: {count}");
    }
}
