//! The reducer: replays of events, and properties of any sequence of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ambit_core::mesh::{Change, Mesh, Touched};
use ambit_core::model::{
    Authorization, NetworkMode, Scope, Service, TunnelProtocol, Waypoint, WaypointDestination, Workload,
};
use ambit_core::route::{Attached, ServiceRoutes};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::build::{
    With as _, allow, behind, captures, ip, m, mesh, only, pod, policy_key, service, service_key, uid,
};

use crate::route::route;

fn put(workload: Workload) -> Change {
    Change::PutWorkload(Arc::new(workload))
}

fn addresses(touched: &Touched) -> Vec<String> {
    touched.addresses.iter().map(ToString::to_string).collect()
}

fn outside(workload: Workload) -> Workload {
    Workload { protocol: TunnelProtocol::None, ..workload }
}

#[test]
fn equal_values_touch_nothing() {
    let cart = service("shop/cart", &["10.96.0.1"], &[(80, 8080)]);
    let changes = || {
        [
            Change::PutService(Arc::new(cart.clone())),
            put(behind(pod("shop/cart-1", &["10.1.0.1"]), &cart)),
            Change::PutPolicy(Arc::new(allow("shop/a", vec![]))),
        ]
    };
    let mut mesh = Mesh::new();
    let touched = mesh.apply(changes());
    assert_eq!(touched.workloads.len() + touched.services.len() + touched.policies.len(), 3);
    assert_eq!(mesh.apply(changes()), Touched::default(), "the same again");
    let unknown = [
        Change::RemoveWorkload(uid("shop/gone")),
        Change::RemoveService(service_key("shop/gone")),
        Change::RemovePolicy(policy_key("shop/gone")),
    ];
    assert!(mesh.apply(unknown).is_empty(), "what is not there cannot be removed");
}

#[test]
fn a_snapshot_is_immutable() {
    let mut mesh = mesh([pod("shop/cart", &["10.1.0.1"])], [], []);
    let snapshot = mesh.clone();
    mesh.apply([Change::RemoveWorkload(uid("shop/cart"))]);
    assert!(mesh.workload_by_address(ip("10.1.0.1")).is_none());
    assert!(snapshot.workload_by_address(ip("10.1.0.1")).is_some());
}

#[test]
fn a_changed_workload_is_reindexed() {
    let cart = service("shop/cart", &["10.96.0.1"], &[(80, 8080)]);
    let first = behind(pod("shop/cart-1", &["10.1.0.1", "fd00::1"]), &cart);
    let mut mesh = mesh([first.clone()], [cart.clone()], []);

    let moved = Workload {
        addresses: vec![ip("10.1.0.2")],
        node: "node-b".into(),
        services: BTreeMap::new(),
        ..first
    };
    let touched = mesh.apply([put(moved)]);
    assert_eq!(addresses(&touched), ["10.1.0.1", "10.1.0.2", "10.96.0.1", "fd00::1"]);
    assert!(mesh.workload_by_address(ip("10.1.0.1")).is_none());
    assert!(mesh.workload_by_address(ip("fd00::1")).is_none());
    assert_eq!(mesh.workload_by_address(ip("10.1.0.2")).map(|w| &w.uid), Some(&uid("shop/cart-1")));
    assert_eq!(mesh.endpoints(&cart.key).count(), 0);
    assert!(!captures(&mesh, ip("10.96.0.1")), "no endpoint in the mesh is left");
    assert_eq!(mesh.workloads_on_node("node-a").count(), 0);
    assert_eq!(mesh.workloads_on_node("node-b").count(), 1);
}

#[test]
fn captured_addresses() {
    let cart = service("shop/cart", &["10.96.0.1", "fd96::1"], &[(80, 8080)]);
    let legacy = service("old/db", &["10.96.0.2"], &[(80, 8080)]);
    let fronted = Service {
        waypoint: Some(Waypoint::new(WaypointDestination::Address(ip("10.1.9.9")))),
        ..service("old/api", &["10.96.0.3"], &[(80, 8080)])
    };
    let empty = service("shop/empty", &["10.96.0.4"], &[(80, 8080)]);
    let host = Workload {
        network_mode: NetworkMode::HostNetwork,
        ..behind(pod("shop/agent", &["192.168.0.1"]), &empty)
    };
    let mesh = mesh(
        [
            behind(pod("shop/cart-1", &["10.1.0.1"]), &cart),
            behind(outside(pod("shop/cart-2", &["10.1.0.2"])), &cart),
            behind(outside(pod("old/db-1", &["10.1.0.3"])), &legacy),
            host,
        ],
        [cart, legacy, fronted, empty],
        [],
    );
    let rows = [
        ("an enrolled pod", "10.1.0.1", true),
        ("an enrolled pod, v4-mapped", "::ffff:10.1.0.1", true),
        ("a pod outside", "10.1.0.2", false),
        ("a service with an enrolled endpoint", "10.96.0.1", true),
        ("its other address", "fd96::1", true),
        ("a service without", "10.96.0.2", false),
        ("a service with a waypoint", "10.96.0.3", true),
        ("a service with a host-network endpoint only", "10.96.0.4", false),
        ("a node", "192.168.0.1", false),
        ("anything else", "1.1.1.1", false),
    ];
    for (name, address, captured) in rows {
        assert_eq!(captures(&mesh, ip(address)), captured, "{name}");
    }
}

#[test]
fn a_service_is_captured_while_an_endpoint_is_enrolled() {
    let cart = service("shop/cart", &["10.96.0.1"], &[(80, 8080)]);
    let mut mesh = mesh([behind(outside(pod("shop/cart-1", &["10.1.0.1"])), &cart)], [cart.clone()], []);
    assert!(!captures(&mesh, ip("10.96.0.1")));
    let touched = mesh.apply([put(behind(pod("shop/cart-1", &["10.1.0.1"]), &cart))]);
    assert_eq!(addresses(&touched), ["10.1.0.1", "10.96.0.1"], "the service's address is touched too");
    assert!(captures(&mesh, ip("10.96.0.1")));
    let touched = mesh.apply([Change::RemoveWorkload(uid("shop/cart-1"))]);
    assert_eq!(addresses(&touched), ["10.1.0.1", "10.96.0.1"]);
    assert!(!captures(&mesh, ip("10.96.0.1")));
}

#[test]
fn an_address_of_several_workloads_has_one_owner() {
    let (old, new) = (pod("shop/a-old", &["10.1.0.1"]), pod("shop/b-new", &["10.1.0.1"]));
    let by = |mesh: &Mesh| mesh.workload_by_address(ip("10.1.0.1")).map(|w| w.name.to_string());

    for order in [[&old, &new], [&new, &old]] {
        let both = mesh(order.map(Clone::clone), [], []);
        assert_eq!(by(&both).as_deref(), Some("a-old"), "the first by uid, in any order of arrival");
    }
    let mut both = mesh([outside(old), new], [], []);
    assert_eq!(by(&both).as_deref(), Some("b-new"), "an enrolled one before one outside");
    both.apply([Change::RemoveWorkload(uid("shop/b-new"))]);
    assert_eq!(by(&both).as_deref(), Some("a-old"), "the other keeps the address");
}

#[test]
fn policies_apply_by_scope() {
    let scoped =
        |name: &str, scope| Authorization { scope, ..allow(name, vec![only(m! { namespaces: ["x"] })]) };
    let mut cart = pod("shop/cart", &["10.1.0.1"]);
    cart.policies = vec![policy_key("shop/listed"), policy_key("shop/everywhere"), policy_key("shop/late")];
    let mut mesh = mesh(
        [cart.clone()],
        [],
        [
            scoped("ambit-system/mesh", Scope::Global),
            scoped("shop/everywhere", Scope::Namespace),
            scoped("blog/everywhere", Scope::Namespace),
            scoped("shop/listed", Scope::WorkloadSelector),
            scoped("shop/unlisted", Scope::WorkloadSelector),
        ],
    );
    let names = |mesh: &Mesh| mesh.policies_for(&cart).iter().map(|p| p.key.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&mesh), ["ambit-system/mesh", "shop/everywhere", "shop/listed"], "each once");

    mesh.apply([Change::PutPolicy(Arc::new(scoped("shop/everywhere", Scope::Global)))]);
    assert_eq!(names(&mesh), ["ambit-system/mesh", "shop/everywhere", "shop/listed"]);
    mesh.apply([Change::PutPolicy(Arc::new(scoped("ambit-system/mesh", Scope::WorkloadSelector)))]);
    assert_eq!(names(&mesh), ["shop/everywhere", "shop/listed"]);
    mesh.apply([
        Change::RemovePolicy(policy_key("shop/everywhere")),
        Change::RemovePolicy(policy_key("shop/listed")),
    ]);
    assert_eq!(names(&mesh), Vec::<String>::new());
}

#[test]
fn missing_policies_differ_from_removed_ones() {
    let named = || Authorization { scope: Scope::WorkloadSelector, ..allow("shop/p", vec![]) };
    let naming = |name: &str, policies: &[&str]| {
        let policies = policies.iter().map(|name| policy_key(name)).collect();
        Workload { policies, ..pod(name, &["10.1.0.1"]) }
    };
    let missing = |mesh: &Mesh| {
        let workload = mesh.workload(&uid("shop/cart")).expect("there");
        mesh.missing_policy(workload).map(ToString::to_string)
    };
    let mut mesh = mesh([naming("shop/cart", &["shop/p"])], [], []);
    assert_eq!(missing(&mesh).as_deref(), Some("shop/p"), "not there yet");
    mesh.apply([Change::PutPolicy(Arc::new(named()))]);
    assert_eq!(missing(&mesh), None);

    let touched = mesh.apply([Change::RemovePolicy(policy_key("shop/p"))]);
    assert_eq!((missing(&mesh), touched.policies.len()), (None, 1), "removed before the workload's update");
    assert!(mesh.apply([Change::RemovePolicy(policy_key("shop/p"))]).is_empty(), "once");
    mesh.apply([put(naming("shop/api", &["shop/p"]))]);
    mesh.apply([put(naming("shop/cart", &[]))]);
    mesh.apply([put(naming("shop/cart", &["shop/p"]))]);
    assert_eq!(missing(&mesh), None, "while anyone names it");

    mesh.apply([put(naming("shop/cart", &[])), Change::RemoveWorkload(uid("shop/api"))]);
    mesh.apply([put(naming("shop/cart", &["shop/p"]))]);
    assert_eq!(missing(&mesh).as_deref(), Some("shop/p"), "named again, it is missing again");

    let touched = mesh.apply([Change::RemovePolicy(policy_key("shop/p"))]);
    assert_eq!((missing(&mesh), touched.policies.len()), (None, 1), "removed although it was never decoded");
    mesh.apply([Change::PutPolicy(Arc::new(named())), Change::RemoveWorkload(uid("shop/cart"))]);
    mesh.apply([Change::RemovePolicy(policy_key("shop/p"))]);
    assert_eq!(mesh, Mesh::new(), "no state remains");
}

/// A small universe, so that changes meet.
const POOL: [&str; 5] = ["10.1.0.1", "10.1.0.2", "fd00::1", "10.96.0.1", "::ffff:10.1.0.1"];

fn some_addresses() -> impl Strategy<Value = Vec<&'static str>> {
    vec(select(POOL.to_vec()), 0..3)
}

fn some_service() -> impl Strategy<Value = Service> {
    let names = vec!["shop/cart", "shop/api", "blog/cart"];
    (select(names), some_addresses(), any::<bool>()).prop_map(|(name, addresses, fronted)| {
        let waypoint = Waypoint::new(WaypointDestination::Address(ip("10.1.9.9")));
        Service { waypoint: fronted.then_some(waypoint), ..service(name, &addresses, &[(80, 8080)]) }
    })
}

fn some_workload() -> impl Strategy<Value = Workload> {
    let names = vec!["shop/a", "shop/b", "blog/a", "blog/b"];
    let services = vec(select(vec!["shop/cart", "shop/api", "blog/cart"]), 0..3);
    let flags = (any::<bool>(), prop::bool::weighted(0.2), any::<bool>());
    let policies = vec(select(vec!["shop/p", "shop/q"]), 0..2);
    let parts = (select(names), some_addresses(), services, flags, policies);
    parts.prop_map(|(name, addresses, services, (mesh, host, node), policies)| {
        let services = services.into_iter().map(|name| service(name, &[], &[(80, 8080)]));
        let mut workload = services.fold(pod(name, &addresses), |workload, s| behind(workload, &s));
        workload.protocol = if mesh { TunnelProtocol::Hbone } else { TunnelProtocol::None };
        workload.network_mode = if host { NetworkMode::HostNetwork } else { NetworkMode::Standard };
        workload.policies = policies.into_iter().map(policy_key).collect();
        workload.node = if node { "node-a" } else { "node-b" }.into();
        workload
    })
}

fn some_policy() -> impl Strategy<Value = Authorization> {
    let scopes = vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector];
    (select(vec!["shop/p", "shop/q", "blog/p"]), select(scopes), any::<bool>())
        .prop_map(|(name, scope, dry_run)| Authorization { scope, dry_run, ..allow(name, vec![]) })
}

fn some_routes() -> impl Strategy<Value = ServiceRoutes> {
    let ports = prop::option::of(select(vec![80_u16, 81]));
    (select(vec!["shop/cart", "shop/api"]), vec(ports, 0..3)).prop_map(|(name, ports)| {
        let attach = |port| Attached { route: route("r", 0, Vec::new()), port, consumer: None };
        ServiceRoutes::new(service_key(name), ports.into_iter().map(attach).collect())
    })
}

fn some_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => some_workload().prop_map(|w| Change::PutWorkload(Arc::new(w))),
        2 => some_workload().prop_map(|w| Change::RemoveWorkload(w.uid)),
        3 => some_service().prop_map(|s| Change::PutService(Arc::new(s))),
        1 => some_service().prop_map(|s| Change::RemoveService(s.key)),
        2 => some_policy().prop_map(|p| Change::PutPolicy(Arc::new(p))),
        1 => some_policy().prop_map(|p| Change::RemovePolicy(p.key)),
        2 => some_routes().prop_map(|r| Change::PutRoutes(Arc::new(r))),
        1 => some_routes().prop_map(|r| Change::RemoveRoutes(r.service().clone())),
    ]
}

/// What anyone can ask about an address.
type Answers = (Option<Arc<Workload>>, Vec<Arc<Service>>, bool);

fn answers(mesh: &Mesh, address: IpAddr) -> Answers {
    let services = mesh.services_by_address(address).cloned().collect();
    (mesh.workload_by_address(address).cloned(), services, captures(mesh, address))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// However the state came about, it is the state that its parts make: nothing lingers in an index.
    #[test]
    fn mesh_is_independent_of_change_order(
        changes in vec(some_change(), 0..40),
        order in vec(any::<Index>(), 0..40),
    ) {
        let mut mesh = Mesh::new();
        for change in changes {
            mesh.apply([change]);
        }
        let mut rest: Vec<Change> = mesh.workloads().cloned().map(Change::PutWorkload)
            .chain(mesh.services().cloned().map(Change::PutService))
            .chain(mesh.policies().cloned().map(Change::PutPolicy))
            .chain(mesh.all_routes().cloned().map(Change::PutRoutes))
            .collect();
        let mut scratch = Mesh::new();
        for index in order {
            if !rest.is_empty() {
                let at = index.index(rest.len());
                scratch.apply([rest.swap_remove(at)]);
            }
        }
        scratch.apply(rest);
        // Removed policies are state. When all that is absent is removed, there is none left.
        for state in [&mut mesh, &mut scratch] {
            let named: Vec<_> = state.workloads().flat_map(|w| w.policies.clone()).collect();
            let absent: Vec<_> = named.into_iter().filter(|key| state.policy(key).is_none()).collect();
            state.apply(absent.into_iter().map(Change::RemovePolicy));
        }
        prop_assert_eq!(&mesh, &scratch);

        // And with everything removed it is as new.
        let gone: Vec<Change> = mesh.workloads().map(|w| Change::RemoveWorkload(w.uid.clone()))
            .chain(mesh.services().map(|s| Change::RemoveService(s.key.clone())))
            .chain(mesh.policies().map(|p| Change::RemovePolicy(p.key.clone())))
            .chain(mesh.all_routes().map(|r| Change::RemoveRoutes(r.service().clone())))
            .collect();
        mesh.apply(gone);
        prop_assert_eq!(mesh, Mesh::new());
    }

    /// A batch is the sum of its changes, and says everything that it touched.
    #[test]
    fn untouched_workloads_keep_their_decisions(
        before in vec(some_change(), 0..20),
        batch in vec(some_change(), 0..5),
    ) {
        let mut mesh = Mesh::new();
        mesh.apply(before);
        let old = mesh.clone();
        let mut stepwise = mesh.clone();
        let touched = mesh.apply(batch.clone());
        for change in batch {
            stepwise.apply([change]);
        }
        prop_assert_eq!(&mesh, &stepwise);

        for address in POOL.map(|address| ip(address).to_canonical()) {
            if answers(&old, address) != answers(&mesh, address) {
                prop_assert!(touched.addresses.contains(&address), "{} changed its answers", address);
            }
        }
        let workloads = old.workloads().chain(mesh.workloads()).map(|w| &w.uid);
        for uid in workloads.filter(|uid| old.workload(uid) != mesh.workload(uid)) {
            prop_assert!(touched.workloads.contains(uid), "{} changed", uid);
        }
        let services = old.services().chain(mesh.services()).map(|s| &s.key);
        for key in services.filter(|key| old.service(key) != mesh.service(key)) {
            prop_assert!(touched.services.contains(key), "{} changed", key);
        }
        let policies = old.policies().chain(mesh.policies()).map(|p| &p.key);
        for key in policies.filter(|key| old.policy(key) != mesh.policy(key)) {
            prop_assert!(touched.policies.contains(key), "{} changed", key);
        }
    }
}
