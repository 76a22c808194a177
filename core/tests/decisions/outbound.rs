//! Where connections go.

use std::collections::BTreeMap;

use ambit_core::Denial;
use ambit_core::balance::Avoid;
use ambit_core::mesh::Mesh;
use ambit_core::model::{
    Affinity, Health, LoadBalancing, LoadBalancingMode, LocalityScope, NetworkMode, Service, TunnelProtocol,
    Waypoint, WaypointDestination, Workload,
};
use ambit_core::outbound::{self, Connection, Plan, another, plan};

use crate::build::{behind, identity, ip, mesh, pod, service, socket, uid};

fn outside(workload: Workload) -> Workload {
    Workload { protocol: TunnelProtocol::None, ..workload }
}

fn waypoint() -> Waypoint {
    Waypoint::new(WaypointDestination::Address(ip("10.1.9.9")))
}

fn shop() -> Mesh {
    let cart = service("shop/cart", &["10.96.0.1", "fd96::1"], &[(80, 8080), (443, 0)]);
    let db = service("old/db", &["10.96.0.2"], &[(5432, 5432)]);
    let mixed = service("shop/mixed", &["10.96.0.3"], &[(80, 8080)]);
    let fronted =
        Service { waypoint: Some(waypoint()), ..service("shop/fronted", &["10.96.0.4"], &[(80, 8080)]) };
    let own = service("shop/web", &["10.96.0.5"], &[(80, 3000)]);
    let empty = service("shop/empty", &["10.96.0.6"], &[(80, 8080)]);
    let unready = service("shop/unready", &["10.96.0.7"], &[(80, 8080)]);
    let six = service("shop/six", &["10.96.0.8"], &[(80, 8080)]);
    let ports = service("shop/ports", &["10.96.0.9"], &[]);
    let api = service("kube/api", &["10.96.0.10"], &[(443, 6443)]);
    let far = service("shop/far", &["10.96.0.11"], &[(80, 8080)]);
    let pending = service("shop/pending", &["10.96.0.12"], &[(80, 8080)]);
    let mut cart_pod = behind(pod("shop/cart-1", &["10.1.0.1", "fd00::1"]), &cart);
    cart_pod.services.get_mut(&cart.key).expect("its service")[1].target_port = 8443;
    let workloads = [
        behind(pod("shop/web", &["10.1.0.7", "fd00::7"]), &own),
        cart_pod,
        behind(outside(pod("old/db-1", &["10.1.0.2"])), &db),
        behind(outside(pod("shop/mixed-1", &["10.1.0.3"])), &mixed),
        Workload { waypoint: Some(waypoint()), ..pod("shop/fronted-1", &["10.1.0.4"]) },
        Workload { health: Health::Unhealthy, ..behind(pod("shop/unready-1", &["10.1.0.5"]), &unready) },
        behind(pod("shop/six-1", &["fd00::6"]), &six),
        Workload {
            network_mode: NetworkMode::HostNetwork,
            ..behind(pod("kube/api-1", &["192.168.0.1"]), &api)
        },
        Workload { network: "elsewhere".into(), ..behind(pod("shop/far-1", &["10.1.0.11"]), &far) },
        behind(pod("shop/pending-1", &[]), &pending),
    ];
    mesh(workloads, [cart, db, mixed, fronted, own, empty, unready, six, ports, api, far, pending], [])
}

fn describe(mesh: &Mesh, destination: &str) -> String {
    let flow = Connection { source: uid("shop/web"), destination: socket(destination), chosen: None };
    match plan(mesh, &flow, &Avoid::NONE, 0) {
        Ok(Plan::Tunnel(t)) => format!("tunnel {} for {} to {}", t.peer, t.authority, t.destination.name),
        Ok(Plan::Waypoint(w)) => {
            format!("waypoint {} for {} to {}", w.tunnel.peer, w.tunnel.authority, w.tunnel.destination.name)
        }
        Ok(Plan::Local(d)) => format!("local {}", d.address),
        Ok(Plan::Passthrough(d)) => format!("passthrough {}", d.address),
        Err(denial) => denial.reason().to_string(),
    }
}

#[test]
fn connections_are_planned_by_destination() {
    let mesh = shop();
    let rows = [
        ("a pod", "10.1.0.1:9090", "tunnel 10.1.0.1:15008 for 10.1.0.1:9090 to cart-1"),
        ("a pod by IPv6", "[fd00::1]:9090", "tunnel [fd00::1]:15008 for [fd00::1]:9090 to cart-1"),
        ("a pod, v4-mapped", "[::ffff:10.1.0.1]:9090", "tunnel 10.1.0.1:15008 for 10.1.0.1:9090 to cart-1"),
        ("a service", "10.96.0.1:80", "tunnel 10.1.0.1:15008 for 10.1.0.1:8080 to cart-1"),
        ("a service by IPv6", "[fd96::1]:80", "tunnel [fd00::1]:15008 for [fd00::1]:8080 to cart-1"),
        ("a named target port", "10.96.0.1:443", "tunnel 10.1.0.1:15008 for 10.1.0.1:8443 to cart-1"),
        ("a port that the service lacks", "10.96.0.1:81", "service_port_unknown"),
        ("a service without ports", "10.96.0.9:80", "service_port_unknown"),
        ("a pod outside", "10.1.0.2:5432", "passthrough 10.1.0.2:5432"),
        ("a service outside", "10.96.0.2:5432", "passthrough 10.1.0.2:5432"),
        ("a host-network endpoint", "10.96.0.10:443", "passthrough 192.168.0.1:6443"),
        ("itself", "10.1.0.7:3000", "local 10.1.0.7:3000"),
        ("itself through its service", "10.96.0.5:80", "local 10.1.0.7:3000"),
        (
            "a service of the other family",
            "10.96.0.8:80",
            "tunnel [fd00::6]:15008 for [fd00::6]:8080 to six-1",
        ),
        ("no endpoints", "10.96.0.6:80", "no_endpoint"),
        ("no ready endpoint", "10.96.0.7:80", "no_endpoint"),
        (
            "an endpoint that is not ready, by its address",
            "10.1.0.5:8080",
            "tunnel 10.1.0.5:15008 for 10.1.0.5:8080 to unready-1",
        ),
        ("an endpoint in another network", "10.96.0.11:80", "no_endpoint"),
        ("an endpoint without address", "10.96.0.12:80", "no_endpoint"),
        ("a service whose waypoint is unknown", "10.96.0.4:80", "waypoint_unavailable"),
        ("a pod whose waypoint is unknown", "10.1.0.4:80", "waypoint_unavailable"),
        ("an address that has left the mesh", "10.9.9.9:80", "destination_unknown"),
    ];
    for (name, destination, expected) in rows {
        assert_eq!(describe(&mesh, destination), expected, "{name}");
    }
}

#[test]
fn what_no_resource_has_is_passed_where_everything_is_captured() {
    let flow = |source, to| Connection { source: uid(source), destination: socket(to), chosen: None };
    let mesh = shop();
    let rows = [
        ("outside the mesh", "10.9.9.9:80", Some("passthrough 10.9.9.9:80")),
        ("outside, v4-mapped", "[::ffff:10.9.9.9]:80", Some("passthrough 10.9.9.9:80")),
        ("a pod", "10.1.0.1:9090", None),
        ("a service", "10.96.0.1:80", None),
        ("a port that the service lacks", "10.96.0.1:81", None),
        ("no endpoints", "10.96.0.6:80", None),
    ];
    for (name, to, expected) in rows {
        let found = outbound::outside(&mesh, &flow("shop/web", to)).map(|plan| match plan {
            Plan::Passthrough(plain) => format!("passthrough {}", plain.address),
            plan => format!("{plan:?}"),
        });
        assert_eq!(found.as_deref(), expected, "{name}");
    }
    assert!(outbound::outside(&mesh, &flow("shop/gone", "10.9.9.9:80")).is_none(), "an unknown client");
}

#[test]
fn an_unknown_client_is_denied() {
    let flow = Connection { source: uid("shop/gone"), destination: socket("10.1.0.1:80"), chosen: None };
    assert_eq!(plan(&shop(), &flow, &Avoid::NONE, 0), Err(Denial::SourceUnknown(uid("shop/gone"))));
}

#[test]
fn a_tunnel_expects_the_endpoints_identities() {
    let cart = Service {
        subject_alt_names: vec![identity("shop/gateway")],
        ..service("shop/cart", &["10.96.0.1"], &[(80, 8080)])
    };
    let endpoint =
        Workload { service_account: "cart".into(), ..behind(pod("shop/cart-1", &["10.1.0.1"]), &cart) };
    let mesh = mesh([pod("shop/web", &["10.1.0.7"]), endpoint], [cart], []);
    let identities = |destination: &str| {
        let flow = Connection { source: uid("shop/web"), destination: socket(destination), chosen: None };
        match plan(&mesh, &flow, &Avoid::NONE, 0) {
            Ok(Plan::Tunnel(tunnel)) => tunnel.identities,
            other => panic!("{destination}: {other:?}"),
        }
    };
    assert_eq!(identities("10.96.0.1:80"), [identity("shop/cart"), identity("shop/gateway")]);
    assert_eq!(
        identities("10.1.0.1:8080"),
        [identity("shop/cart")],
        "the service's names only for the service"
    );
}

#[test]
fn shared_address_prefers_service_of_client_namespace() {
    let shared = |name: &str, port| service(name, &["10.96.0.1"], &[(port, port)]);
    let (a, b, other) = (shared("bank/a", 80), shared("shop/b", 80), shared("aaa/c", 443));
    let workloads = [
        pod("shop/web", &["10.1.0.7"]),
        behind(pod("bank/a-1", &["10.1.0.1"]), &a),
        behind(pod("shop/b-1", &["10.1.0.2"]), &b),
        behind(pod("aaa/c-1", &["10.1.0.3"]), &other),
    ];
    let mesh = mesh(workloads, [a, b, other], []);
    assert_eq!(
        describe(&mesh, "10.96.0.1:80"),
        "tunnel 10.1.0.2:15008 for 10.1.0.2:80 to b-1",
        "its own namespace's"
    );
    assert_eq!(
        describe(&mesh, "10.96.0.1:443"),
        "tunnel 10.1.0.3:15008 for 10.1.0.3:443 to c-1",
        "the one with the port"
    );
    assert_eq!(describe(&mesh, "10.96.0.1:22"), "service_port_unknown");
}

#[test]
fn a_service_takes_precedence_over_a_pod_with_its_address() {
    let external = service("shop/external", &["10.1.0.1"], &[(80, 8080)]);
    let workloads = [pod("shop/web", &["10.1.0.7"]), behind(pod("shop/cart", &["10.1.0.1"]), &external)];
    let mesh = mesh(workloads, [external], []);
    assert_eq!(describe(&mesh, "10.1.0.1:80"), "tunnel 10.1.0.1:15008 for 10.1.0.1:8080 to cart");
    assert_eq!(
        describe(&mesh, "10.1.0.1:9090"),
        "tunnel 10.1.0.1:15008 for 10.1.0.1:9090 to cart",
        "else the pod"
    );
}

#[test]
fn endpoints_serve_only_the_ports_they_map() {
    let cart = service("shop/cart", &["10.96.0.1"], &[(80, 8080), (90, 0)]);
    let mut partial = behind(pod("shop/cart-1", &["10.1.0.1"]), &cart);
    partial.services.get_mut(&cart.key).expect("its service").truncate(1);
    let unnamed = behind(pod("shop/cart-2", &["10.1.0.2"]), &cart);
    let mesh = mesh([pod("shop/web", &["10.1.0.7"]), partial, unnamed], [cart], []);
    assert_eq!(describe(&mesh, "10.96.0.1:90"), "no_endpoint", "no endpoint maps port 90");
}

#[test]
fn passthrough_keeps_the_destination_and_never_sends_plaintext_into_the_mesh() {
    let passing = |name, address| Service {
        load_balancing: LoadBalancing { mode: LoadBalancingMode::Passthrough, ..LoadBalancing::default() },
        ..service(name, &[address], &[(80, 8080)])
    };
    let (pods, inside, out) = (
        passing("shop/pods", "10.1.0.1"),
        passing("shop/inside", "10.96.0.2"),
        passing("shop/out", "10.96.0.3"),
    );
    let workloads = [
        pod("shop/web", &["10.1.0.7"]),
        behind(pod("shop/cart", &["10.1.0.1"]), &inside),
        behind(outside(pod("shop/old", &["10.1.0.2"])), &out),
    ];
    let mesh = mesh(workloads, [pods, inside, out], []);
    assert_eq!(describe(&mesh, "10.1.0.1:80"), "tunnel 10.1.0.1:15008 for 10.1.0.1:80 to cart");
    assert_eq!(describe(&mesh, "10.96.0.2:80"), "destination_unknown");
    assert_eq!(describe(&mesh, "10.96.0.3:80"), "passthrough 10.96.0.3:80");
}

#[test]
fn connections_are_spread_over_endpoints() {
    let cart = Service {
        load_balancing: LoadBalancing {
            mode: LoadBalancingMode::Failover,
            routing_preference: vec![LocalityScope::Node],
            ..LoadBalancing::default()
        },
        ..service("shop/cart", &["10.96.0.1"], &[(80, 8080)])
    };
    let on = |name: &str, address: &str, node: &str| Workload {
        node: node.into(),
        ..behind(pod(name, &[address]), &cart)
    };
    let mesh = mesh(
        [
            pod("shop/web", &["10.1.0.7"]),
            on("shop/near-1", "10.1.0.1", "node-a"),
            on("shop/near-2", "10.1.0.2", "node-a"),
            on("shop/far", "10.2.0.1", "node-b"),
        ],
        [cart.clone()],
        [],
    );
    let mut shares: BTreeMap<String, u32> = BTreeMap::new();
    for roll in 0..100_u64 {
        let flow = Connection { source: uid("shop/web"), destination: socket("10.96.0.1:80"), chosen: None };
        match plan(&mesh, &flow, &Avoid::NONE, roll * (u64::MAX / 100) + u64::MAX / 200) {
            Ok(Plan::Tunnel(tunnel)) => *shares.entry(tunnel.destination.name.to_string()).or_default() += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(shares, BTreeMap::from([("near-1".to_owned(), 50), ("near-2".to_owned(), 50)]));
}

#[test]
fn retries_use_each_endpoint_once() {
    let mesh = shop();
    let rows = [
        ("a service", "10.96.0.1:80", 1),
        ("a service outside the mesh", "10.96.0.2:5432", 1),
        ("a pod", "10.1.0.1:9090", 1),
        ("itself", "10.96.0.5:80", 1),
        ("several", "10.96.0.13:80", 3),
    ];
    let many = service("shop/many", &["10.96.0.13"], &[(80, 8080)]);
    let mut mesh = mesh;
    let endpoints = (0..3).map(|n| behind(pod(&format!("shop/many-{n}"), &[&format!("10.1.2.{n}")]), &many));
    let changes = endpoints.map(|w| ambit_core::mesh::Change::PutWorkload(w.into())).collect::<Vec<_>>();
    mesh.apply([ambit_core::mesh::Change::PutService(many.clone().into())].into_iter().chain(changes));
    for (name, destination, count) in rows {
        let flow = Connection { source: uid("shop/web"), destination: socket(destination), chosen: None };
        let mut tried = Vec::new();
        let mut next = Some(plan(&mesh, &flow, &Avoid::NONE, 7).expect(name));
        while let Some(plan) = next {
            tried.push(plan.destination().expect(name).uid.clone());
            next = another(&mesh, &flow, &Avoid { tried: &tried, ..Avoid::NONE }, 7);
        }
        assert_eq!(
            tried.iter().collect::<std::collections::BTreeSet<_>>().len(),
            tried.len(),
            "{name}: twice"
        );
        assert_eq!(tried.len(), count, "{name}");
    }
}

#[test]
fn the_kernels_choice_is_used_if_eligible() {
    let cart = service("shop/cart", &["10.96.0.1"], &[(80, 8080)]);
    let sticky = Service {
        load_balancing: LoadBalancing { affinity: Affinity::ClientIp, ..LoadBalancing::default() },
        ..service("shop/sticky", &["10.96.0.2"], &[(80, 8080)])
    };
    let endpoints = (1..=8)
        .map(|n| behind(behind(pod(&format!("shop/cart-{n}"), &[&format!("10.1.1.{n}")]), &cart), &sticky));
    let endpoints: Vec<_> = endpoints.collect();
    let mesh = mesh([pod("shop/web", &["10.1.0.7"])].into_iter().chain(endpoints), [cart, sticky], []);
    let went = |destination: &str, chosen: Option<&str>, dice| {
        let flow = Connection {
            source: uid("shop/web"),
            destination: socket(destination),
            chosen: chosen.map(socket),
        };
        match plan(&mesh, &flow, &Avoid::NONE, dice) {
            Ok(Plan::Tunnel(tunnel)) => tunnel.authority,
            other => panic!("{other:?}"),
        }
    };
    for n in 1..=8 {
        let chosen = format!("10.1.1.{n}:8080");
        assert_eq!(went("10.96.0.1:80", Some(&chosen), 7), socket(&chosen), "an endpoint");
        assert_eq!(
            went("10.96.0.2:80", Some(&chosen), n),
            went("10.96.0.2:80", None, 7),
            "affinity decides itself"
        );
    }
    let by_dice = went("10.96.0.1:80", None, 7);
    assert_eq!(went("10.96.0.1:80", Some("10.1.1.9:8080"), 7), by_dice, "it has left");
    assert_eq!(went("10.96.0.1:80", Some("10.1.1.1:8081"), 7), by_dice, "another port");
    assert_eq!(
        went("10.1.1.1:9090", Some("10.1.1.2:8080"), 7),
        socket("10.1.1.1:9090"),
        "no service was asked for"
    );
}
