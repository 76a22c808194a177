//! Connections through waypoints: where they go, and what their destination makes of them.

use ambit_core::balance::Avoid;
use ambit_core::direct;
use ambit_core::inbound::{PlaintextMode, authorize_tunnel_for, plaintext_modes};
use ambit_core::mesh::Mesh;
use ambit_core::model::{
    Authorization, Health, Service, TunnelProtocol, Waypoint, WaypointDestination, WaypointState, Workload,
};
use ambit_core::outbound::{Connection, Forward, Plan, another, forward, plan};
use ambit_core::policy::{NamedClient, Request, authorize};

use crate::build::{
    With as _, allow, behind, deny, identity, ip, m, mesh, only, pod, service, service_key, socket, uid,
};

fn binding() -> Waypoint {
    let own = WaypointDestination::Hostname(service_key("shop/wp"));
    Waypoint { service_account: Some("wp".into()), ..Waypoint::new(own) }
}

/// One of the waypoint's pods: not enrolled, it takes tunnels itself.
fn proxy(name: &str, address: &str, of: &Service) -> Workload {
    let base = Workload { service_account: "wp".into(), ..behind(pod(name, &[address]), of) };
    Workload { protocol: TunnelProtocol::None, ..base }
}

fn shop(change: impl FnOnce(&mut Vec<Workload>, &mut Service)) -> Mesh {
    let wp = service("shop/wp", &["10.96.9.9"], &[(15008, 15008)]);
    let mut cart =
        Service { waypoint: Some(binding()), ..service("shop/cart", &["10.96.0.1"], &[(80, 8080)]) };
    let other = service("shop/other", &["10.96.0.2"], &[(80, 8080)]);
    let mut workloads = vec![
        pod("shop/web", &["10.1.0.7"]),
        behind(pod("shop/cart-1", &["10.1.0.1"]), &cart),
        behind(pod("shop/other-1", &["10.1.0.2"]), &other),
        proxy("shop/wp-1", "10.1.9.1", &wp),
        proxy("shop/wp-2", "10.1.9.2", &wp),
    ];
    change(&mut workloads, &mut cart);
    mesh(workloads, [wp, cart, other], [])
}

fn describe(plan: Result<Plan, ambit_core::Denial>) -> String {
    match plan {
        Ok(Plan::Waypoint(to)) => format!("waypoint {} for {}", to.tunnel.peer, to.tunnel.authority),
        Ok(Plan::Tunnel(t)) => format!("tunnel {} for {}", t.peer, t.authority),
        Ok(Plan::Local(l)) => format!("local {}", l.address),
        Ok(Plan::Passthrough(p)) => format!("passthrough {}", p.address),
        Err(denial) => denial.reason().to_string(),
    }
}

fn ask(mesh: &Mesh, source: &str, destination: &str) -> String {
    let connection = Connection { source: uid(source), destination: socket(destination), chosen: None };
    describe(plan(mesh, &connection, &Avoid::NONE, 0))
}

#[test]
fn connections_pass_the_waypoint() {
    let state = |state| {
        move |_: &mut Vec<Workload>, cart: &mut Service| {
            cart.waypoint = Some(Waypoint { state, ..binding() });
        }
    };
    let all = |change: fn(&mut Workload)| {
        move |workloads: &mut Vec<Workload>, _: &mut Service| {
            workloads.iter_mut().filter(|it| &*it.service_account == "wp").for_each(change);
        }
    };
    let to = "waypoint 10.1.9.1:15008 for 10.96.0.1:80";
    let rows: Vec<(&str, Mesh, &str, &str, &str)> = vec![
        ("a service", shop(|_, _| {}), "shop/web", "10.96.0.1:80", to),
        (
            "a service without one",
            shop(|_, _| {}),
            "shop/web",
            "10.96.0.2:80",
            "tunnel 10.1.0.2:15008 for 10.1.0.2:8080",
        ),
        (
            "its pod by address",
            shop(|_, _| {}),
            "shop/web",
            "10.1.0.1:8080",
            "tunnel 10.1.0.1:15008 for 10.1.0.1:8080",
        ),
        ("from the service's own pod", shop(|_, _| {}), "shop/cart-1", "10.96.0.1:80", to),
        ("a port that it lacks", shop(|_, _| {}), "shop/web", "10.96.0.1:81", "service_port_unknown"),
        (
            "not programmed",
            shop(state(WaypointState::Pending)),
            "shop/web",
            "10.96.0.1:80",
            "tunnel 10.1.0.1:15008 for 10.1.0.1:8080",
        ),
        (
            "not programmed, and needed",
            shop(state(WaypointState::Awaited)),
            "shop/web",
            "10.96.0.1:80",
            "waypoint_not_programmed",
        ),
        (
            "none is ready",
            shop(all(|it| it.health = Health::Unhealthy)),
            "shop/web",
            "10.96.0.1:80",
            "waypoint_unavailable",
        ),
        (
            "none is there",
            shop(|all, _| all.retain(|it| &*it.service_account != "wp")),
            "shop/web",
            "10.96.0.1:80",
            "waypoint_unavailable",
        ),
        (
            "from the waypoint itself",
            shop(|_, _| {}),
            "shop/wp-1",
            "10.96.0.1:80",
            "tunnel 10.1.0.1:15008 for 10.1.0.1:8080",
        ),
        (
            "a pod that has one",
            shop(|all, _| all[1].waypoint = Some(binding())),
            "shop/web",
            "10.1.0.1:8080",
            "waypoint 10.1.9.1:15008 for 10.1.0.1:8080",
        ),
        (
            "such a pod to itself",
            shop(|all, _| all[1].waypoint = Some(binding())),
            "shop/cart-1",
            "10.1.0.1:8080",
            "local 10.1.0.1:8080",
        ),
        (
            "such a pod from its waypoint",
            shop(|all, _| all[1].waypoint = Some(binding())),
            "shop/wp-2",
            "10.1.0.1:8080",
            "tunnel 10.1.0.1:15008 for 10.1.0.1:8080",
        ),
    ];
    for (row, mesh, source, destination, expected) in rows {
        assert_eq!(ask(&mesh, source, destination), expected, "{row}");
    }
}

#[test]
fn the_waypoint_must_prove_its_account() {
    let identities = |mesh: &Mesh| {
        let connection =
            Connection { source: uid("shop/web"), destination: socket("10.96.0.1:80"), chosen: None };
        match plan(mesh, &connection, &Avoid::NONE, 0) {
            Ok(Plan::Waypoint(to)) => to.tunnel.identities,
            other => panic!("{other:?}"),
        }
    };
    let impostor = shop(|all, _| {
        all.iter_mut()
            .filter(|it| it.name.starts_with("wp"))
            .for_each(|it| it.service_account = "evil".into());
    });
    assert_eq!(identities(&impostor), [identity("shop/wp")], "whatever account its pods have");
    let foreign = shop(|_, cart| cart.waypoint = Some(Waypoint { service_account: None, ..binding() }));
    assert_eq!(identities(&foreign), [identity("shop/wp")], "another control plane names none: its pod's");
}

#[test]
fn a_retry_takes_another_endpoint_of_the_waypoint() {
    let mesh = shop(|_, _| {});
    let connection =
        Connection { source: uid("shop/web"), destination: socket("10.96.0.1:80"), chosen: None };
    let tried = [uid("shop/wp-1")];
    let next = another(&mesh, &connection, &Avoid { tried: &tried, ..Avoid::NONE }, 0).expect("another");
    assert_eq!(describe(Ok(next.clone())), "waypoint 10.1.9.2:15008 for 10.96.0.1:80");
    let of = next.chosen_of(&connection).expect("a service");
    assert_eq!((of.service, of.port), (service_key("shop/wp"), 15008), "its health is the waypoint's");
    let tried = [uid("shop/wp-1"), uid("shop/wp-2")];
    assert_eq!(another(&mesh, &connection, &Avoid { tried: &tried, ..Avoid::NONE }, 0), None);
}

#[test]
fn a_waypoint_sends_on_to_backends() {
    let far = |_: &mut Vec<Workload>, cart: &mut Service| {
        let destination = WaypointDestination::Hostname(service_key("infra/far"));
        cart.waypoint = Some(Waypoint::new(destination));
    };
    let rows = [
        ("an own service", shop(|_, _| {}), "shop/cart", 80, "tunnel 10.1.0.1:15008 for 10.1.0.1:8080"),
        ("another service", shop(|_, _| {}), "shop/other", 80, "tunnel 10.1.0.2:15008 for 10.1.0.2:8080"),
        ("a port that it lacks", shop(|_, _| {}), "shop/other", 81, "service_port_unknown"),
        ("no such service", shop(|_, _| {}), "shop/gone", 80, "no_endpoint"),
        ("a service with another waypoint", shop(far), "shop/cart", 80, "waypoint_unavailable"),
    ];
    for (row, mesh, service, port, expected) in rows {
        let what = Forward { source: uid("shop/wp-1"), service: service_key(service), port, dialled: None };
        assert_eq!(describe(forward(&mesh, &what, &Avoid::NONE, 0)), expected, "{row}");
    }
}

fn arrives(
    policies: Vec<Authorization>,
    change: impl FnOnce(&mut Vec<Workload>, &mut Service),
    peer: &str,
    client: Option<(&str, Option<&str>)>,
) -> String {
    let mut mesh = shop(change);
    let put = |policy| ambit_core::mesh::Change::PutPolicy(std::sync::Arc::new(policy));
    mesh.apply(policies.into_iter().map(put));
    let client =
        client.map(|(who, address)| NamedClient { identity: identity(who), address: address.map(ip) });
    let (cart, at) = (uid("shop/cart-1"), socket("10.1.0.1:8080"));
    let decision = authorize_tunnel_for(&mesh, &cart, at, &identity(peer), ip("10.1.9.1"), client.as_ref());
    match decision.outcome {
        Ok(_) => "permitted".to_owned(),
        Err(denial) => denial.reason().to_string(),
    }
}

#[test]
fn policies_look_at_the_waypoint_and_at_its_client() {
    let from = |account: &str| {
        let principal = format!("cluster.local/ns/shop/sa/{account}");
        only(m! { principals: [principal.as_str()] })
    };
    let allow_web = || vec![allow("shop/a", vec![from("web")])];
    let allow_wp = || vec![allow("shop/a", vec![from("wp")])];
    let deny_web = || vec![deny("shop/d", vec![from("web")])];
    let deny_wp = || vec![deny("shop/d", vec![from("wp")])];
    let near = || vec![deny("shop/d", vec![only(m! { source_ips: ["10.1.0.0/24"] })])];
    let (web, api) = (Some(("shop/web", Some("10.1.0.7"))), Some(("shop/api", Some("10.2.0.8"))));
    let nowhere = Some(("shop/api", None));
    let rows = [
        ("no policy", vec![], "shop/wp", web, "permitted"),
        ("allowed: the client", allow_web(), "shop/wp", web, "permitted"),
        ("allowed: the waypoint, as Istio's manifests do", allow_wp(), "shop/wp", web, "permitted"),
        ("allowed: neither", allow_web(), "shop/wp", api, "policy_not_allowed"),
        ("denied: the client", deny_web(), "shop/wp", web, "policy_denied"),
        ("denied: the waypoint", deny_wp(), "shop/wp", web, "policy_denied"),
        ("denied: neither", deny_web(), "shop/wp", api, "permitted"),
        ("denied by the client's address", near(), "shop/wp", web, "policy_denied"),
        ("another address", near(), "shop/wp", api, "permitted"),
        ("an address that is not said", near(), "shop/wp", nowhere, "policy_denied"),
        ("the waypoint names nobody", allow_web(), "shop/wp", None, "policy_not_allowed"),
        ("another peer's claim is nothing", allow_web(), "shop/api", web, "policy_not_allowed"),
        ("nor does it deny", deny_web(), "shop/api", web, "permitted"),
        ("another namespace's account of that name", allow_web(), "blog/wp", web, "policy_not_allowed"),
    ];
    for (row, policies, peer, client, expected) in rows {
        assert_eq!(arrives(policies, |_, _| {}, peer, client), expected, "{row}");
    }
    // A service with a waypoint does not make it that of pods that do not serve it.
    let unbound = |_: &mut Vec<Workload>, cart: &mut Service| cart.waypoint = None;
    assert_eq!(arrives(allow_web(), unbound, "shop/wp", web), "policy_not_allowed");
    let pending = |_: &mut Vec<Workload>, cart: &mut Service| {
        cart.waypoint = Some(Waypoint { state: WaypointState::Pending, ..binding() });
    };
    assert_eq!(arrives(allow_web(), pending, "shop/wp", web), "permitted", "others may know more already");
}

#[test]
fn a_workload_may_refuse_what_did_not_pass_its_waypoint() {
    let require = |all: &mut Vec<Workload>, _: &mut Service| all[1].require_waypoint = true;
    let web = Some(("shop/web", None));
    assert_eq!(arrives(vec![], require, "shop/wp", web), "permitted");
    assert_eq!(arrives(vec![], require, "shop/web", None), "waypoint_required");
    assert_eq!(arrives(vec![], require, "shop/web", web), "waypoint_required", "whatever it says");
    let mesh = shop(require);
    let cart = uid("shop/cart-1");
    let plain = Request { identity: None, source: ip("10.1.0.7"), destination: socket("10.1.0.1:8080") };
    let refused = authorize(&mesh, &cart, &plain).outcome.expect_err("plaintext");
    assert_eq!(refused.reason().name(), "waypoint_required");
    assert_eq!(plaintext_modes(&mesh, &cart).default, PlaintextMode::Strict, "the kernel refuses it");
    assert!(direct::verdict(&mesh, &uid("shop/web"), &cart, socket("10.1.0.1:8080")).is_err());
}
