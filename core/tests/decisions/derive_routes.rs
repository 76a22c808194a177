//! Routes of every kind → the routes of services, and what their status says.

use ambit_core::derive::{
    BackendRef, GrantFrom, GrantTo, Kind, Metadata, Object, ParentRef, ReferenceGrant, RouteObject,
    RuleEffect, RuleMistake, Standing, Statement,
};
use ambit_core::route::{Attached, RouteKind, ServerNameMatch, Target};

use crate::build::service_key;
use crate::objects::{Lab, backend, gateway, metadata, parent, route, service, service_port, waypoint};

const HTTP: RouteKind = RouteKind::Http;
const GRPC: RouteKind = RouteKind::Grpc;
const TLS: RouteKind = RouteKind::Tls;
const TCP: RouteKind = RouteKind::Tcp;

fn named_port(name: &str, port: u16) -> ambit_core::derive::ServicePort {
    ambit_core::derive::ServicePort { name: name.into(), ..service_port(port, "8080") }
}

/// Two Services of one namespace and one of another.
fn shop() -> Vec<Object> {
    let ports = || vec![named_port("web", 80), named_port("api", 81)];
    let cart = service("shop/cart", &["10.96.0.1"], &[("app", "cart")], ports());
    let v2 = service("shop/cart-v2", &["10.96.0.2"], &[("app", "cart")], ports());
    let cms = service("blog/cms", &["10.96.0.3"], &[("app", "cms")], ports());
    let headless = service("shop/headless", &[], &[("app", "cart")], ports());
    [cart, v2, cms, headless].into_iter().map(Object::Service).collect()
}

fn lab(routes: impl IntoIterator<Item = RouteObject>) -> Lab {
    let routes = routes.into_iter().map(|route| Object::Route(Box::new(route)));
    Lab::new(shop().into_iter().chain(routes))
}

/// What is attached to a service: `name@port/consumer`.
fn attached(lab: &Lab, service: &str) -> Vec<String> {
    let text = |it: &Attached| {
        let port = it.port.map(|port| format!("@{port}")).unwrap_or_default();
        let consumer = it.consumer.as_ref().map(|consumer| format!("/{consumer}")).unwrap_or_default();
        format!("{}{port}{consumer}", it.route.key.name)
    };
    let routes = lab.mesh.routes(&service_key(service));
    routes.into_iter().flat_map(|routes| routes.attached()).map(text).collect()
}

fn statements(lab: &Lab, kind: RouteKind, name: &str, index: usize) -> Vec<Statement> {
    let key = crate::objects::key(Kind::of_route(kind), name);
    match lab.world.standings().get(&key) {
        Some(Standing::Route(parents)) => parents[index].conditions.clone(),
        other => panic!("{name}: {other:?}"),
    }
}

/// A condition as `reason` or `!reason`, with its message.
fn said(statements: &[Statement], kind: &str) -> (String, String) {
    let Some(found) = statements.iter().find(|it| it.kind == kind) else { return Default::default() };
    let not = if found.holds { "" } else { "!" };
    (format!("{not}{}", found.reason), found.message.clone())
}

fn section(name: &str, section: &str) -> ParentRef {
    ParentRef { section: Some(section.into()), ..parent(name, None) }
}

#[test]
fn parents_decide_where_a_route_is_attached() {
    let both = ParentRef { port: Some(81), ..section("cart", "web") };
    let foreign = ParentRef {
        group: "gateway.networking.k8s.io".into(),
        kind: "Gateway".into(),
        ..parent("cart", None)
    };
    let rows: Vec<(&str, &str, Vec<ParentRef>, &[&str], &str)> = vec![
        ("every port", "shop/r", vec![parent("cart", None)], &["r"], "Accepted"),
        ("one port", "shop/r", vec![parent("cart", Some(81))], &["r@81"], "Accepted"),
        ("a port by name", "shop/r", vec![section("cart", "api")], &["r@81"], "Accepted"),
        ("both, not the same port", "shop/r", vec![both], &[], "!NoMatchingParent"),
        ("a port that it lacks", "shop/r", vec![parent("cart", Some(82))], &[], "!NoMatchingParent"),
        ("a name that it lacks", "shop/r", vec![section("cart", "no")], &[], "!NoMatchingParent"),
        ("no such Service", "shop/r", vec![parent("gone", None)], &[], "!NoMatchingParent"),
        ("a headless Service", "shop/r", vec![parent("headless", None)], &[], "!NoMatchingParent"),
        (
            "of another namespace: a consumer's",
            "blog/r",
            vec![parent("shop/cart", Some(80))],
            &["r@80/blog"],
            "Accepted",
        ),
        ("a Gateway as well", "shop/r", vec![parent("cart", None), foreign], &["r"], "Accepted"),
    ];
    for (row, name, parents, expected, accepted) in rows {
        let lab = lab([route(HTTP, name, parents, vec![backend("shop/cart", 80)])]);
        assert_eq!(attached(&lab, "shop/cart"), expected, "{row}");
        let (reason, message) = said(&statements(&lab, HTTP, name, 0), "Accepted");
        assert_eq!(reason, accepted, "{row}: {message}");
    }
}

#[test]
fn one_kind_of_route_for_each_port() {
    let route = |kind, name: &str, port| route(kind, name, vec![parent("shop/cart", port)], vec![]);
    let rows: Vec<(&str, Vec<RouteObject>, &[&str], &str)> = vec![
        ("alone", vec![route(HTTP, "shop/h", None)], &["h"], "Accepted"),
        (
            "both for every port",
            vec![route(HTTP, "shop/h", None), route(GRPC, "shop/g", None)],
            &["g"],
            "!Conflicted",
        ),
        (
            "gRPC for one port",
            vec![route(HTTP, "shop/h", None), route(GRPC, "shop/g", Some(81))],
            &["g@81", "h@80"],
            "Accepted",
        ),
        (
            "different ports",
            vec![route(HTTP, "shop/h", Some(80)), route(GRPC, "shop/g", Some(81))],
            &["g@81", "h@80"],
            "Accepted",
        ),
        (
            "the same port",
            vec![route(HTTP, "shop/h", Some(81)), route(GRPC, "shop/g", Some(81))],
            &["g@81"],
            "!Conflicted",
        ),
        (
            "a consumer's is another matter",
            vec![route(HTTP, "shop/h", None), route(GRPC, "blog/g", None)],
            &["g/blog", "h"],
            "Accepted",
        ),
    ];
    for (row, routes, expected, accepted) in rows {
        // In either order of arrival.
        for turned in [false, true] {
            let mut routes = routes.clone();
            if turned {
                routes.reverse();
            }
            let mut lab = Lab::new(shop());
            for route in routes {
                lab.put([Object::Route(Box::new(route))]);
            }
            let mut found = attached(&lab, "shop/cart");
            found.sort();
            assert_eq!(found, expected, "{row}");
            let (reason, message) = said(&statements(&lab, HTTP, "shop/h", 0), "Accepted");
            assert_eq!(reason, accepted, "{row}");
            // It keeps port 80.
            let lost = message.contains("port 81: a GRPCRoute serves this port");
            assert_eq!(lost, row == "gRPC for one port", "{row}: {message}");
        }
    }
}

/// Of this age, with these hostnames.
fn aged(route: RouteObject, created: i64, names: &[&str]) -> RouteObject {
    let parse = |name: &&str| ServerNameMatch::parse(name).expect("a server name");
    let metadata = Metadata { created: Some(created), ..route.metadata };
    RouteObject { metadata, server_names: names.iter().map(parse).collect(), ..route }
}

#[test]
fn routes_of_connections_and_their_conflicts() {
    let of = |kind, name: &str, port, created, names: &[&str]| {
        aged(route(kind, name, vec![parent("shop/cart", port)], vec![]), created, names)
    };
    let tcp = |name: &str, port, created| of(TCP, name, port, created, &[]);
    let tls = |name: &str, created, names: &[&str]| of(TLS, name, None, created, names);
    // What is attached, and Accepted of the first and the last route.
    let rows: Vec<(&str, Vec<RouteObject>, &[&str], [&str; 2])> = vec![
        ("TCP", vec![tcp("shop/t", None, 0)], &["t"], ["Accepted", "Accepted"]),
        (
            "HTTP before TCP",
            vec![of(HTTP, "shop/h", None, 9, &[]), tcp("shop/t", None, 0)],
            &["h"],
            ["Accepted", "!Conflicted"],
        ),
        (
            "gRPC before TLS, at one port",
            vec![of(GRPC, "shop/g", Some(80), 9, &[]), tls("shop/t", 0, &["a.com"])],
            &["g@80", "t@81"],
            ["Accepted", "Accepted"],
        ),
        (
            "TLS before TCP",
            vec![tls("shop/s", 9, &["a.com"]), tcp("shop/t", None, 0)],
            &["s"],
            ["Accepted", "!Conflicted"],
        ),
        (
            "the older TCPRoute",
            vec![tcp("shop/new", None, 2), tcp("shop/old", None, 1)],
            &["old"],
            ["!Conflicted", "Accepted"],
        ),
        (
            "the older TCPRoute at one port",
            vec![tcp("shop/new", None, 2), tcp("shop/old", Some(80), 1)],
            &["new@81", "old@80"],
            ["Accepted", "Accepted"],
        ),
        (
            "of one age by name",
            vec![tcp("shop/b", None, 1), tcp("shop/a", None, 1)],
            &["a"],
            ["!Conflicted", "Accepted"],
        ),
        (
            "other server names",
            vec![tls("shop/a", 1, &["a.com"]), tls("shop/b", 2, &["*.com", "a.com"])],
            &["a", "b"],
            ["Accepted", "Accepted"],
        ),
        (
            "the same server names",
            vec![tls("shop/a", 1, &["a.com", "b.com"]), tls("shop/b", 2, &["b.com"])],
            &["a"],
            ["Accepted", "!Conflicted"],
        ),
        (
            "every server name twice",
            vec![tls("shop/a", 1, &[]), tls("shop/b", 2, &[])],
            &["a"],
            ["Accepted", "!Conflicted"],
        ),
        (
            "a consumer's is another matter",
            vec![tcp("blog/t", None, 0), of(HTTP, "shop/h", None, 0, &[])],
            &["h", "t/blog"],
            ["Accepted", "Accepted"],
        ),
    ];
    for (row, routes, expected, accepted) in rows {
        // In either order of arrival.
        for turned in [false, true] {
            let mut lab = Lab::new(shop());
            let mut arriving = routes.clone();
            if turned {
                arriving.reverse();
            }
            for route in arriving {
                lab.put([Object::Route(Box::new(route))]);
            }
            let mut found = attached(&lab, "shop/cart");
            found.sort();
            assert_eq!(found, expected, "{row}");
            for (route, accepted) in [&routes[0], &routes[routes.len() - 1]].into_iter().zip(accepted) {
                let Metadata { namespace, name, .. } = &route.metadata;
                let (found, message) =
                    said(&statements(&lab, route.kind, &format!("{namespace}/{name}"), 0), "Accepted");
                assert_eq!(found, accepted, "{row}: {name}: {message}");
            }
        }
    }
}

#[test]
fn routes_of_requests_take_no_port_that_is_declared_otherwise() {
    let ports = vec![named_port("http", 80), named_port("tcp-db", 81), named_port("tls", 82)];
    let mixed = Object::Service(service("shop/mixed", &["10.96.0.9"], &[], ports));
    let to = |kind, name: &str, port| route(kind, name, vec![parent("mixed", port)], vec![]);
    let mut lab = Lab::new([mixed]);
    lab.put([Object::Route(Box::new(to(HTTP, "shop/h", None)))]);
    assert_eq!(attached(&lab, "shop/mixed"), ["h@80"]);
    lab.put([Object::Route(Box::new(to(TCP, "shop/t", Some(81))))]);
    lab.put([Object::Route(Box::new(to(TLS, "shop/s", Some(82))))]);
    let mut found = attached(&lab, "shop/mixed");
    found.sort();
    assert_eq!(found, ["h@80", "s@82", "t@81"]);
    for (kind, name) in [(HTTP, "shop/h"), (TCP, "shop/t"), (TLS, "shop/s")] {
        assert_eq!(said(&statements(&lab, kind, name, 0), "Accepted").0, "Accepted", "{name}");
    }
    lab.delete(Kind::TCPRoute, "shop/t");
    lab.delete(Kind::TLSRoute, "shop/s");
    assert_eq!(attached(&lab, "shop/mixed"), ["h@80"]);
    for (name, port, protocol) in [("shop/at-tcp", 81, "TCP"), ("shop/at-tls", 82, "TLS")] {
        lab.put([Object::Route(Box::new(to(HTTP, name, Some(port))))]);
        let (reason, message) = said(&statements(&lab, HTTP, name, 0), "Accepted");
        assert_eq!(reason, "!UnsupportedProtocol", "{name}");
        assert!(message.contains(&format!("port {port} is declared as {protocol}")), "{message}");
    }
    assert_eq!(attached(&lab, "shop/mixed"), ["h@80"]);
    let mut consumer = to(HTTP, "blog/h", None);
    consumer.parents[0].namespace = Some("shop".into());
    lab.put([Object::Route(Box::new(consumer))]);
    assert_eq!(attached(&lab, "shop/mixed"), ["h@80/blog", "h@80"]);
}

#[test]
fn a_second_rule_for_connections_is_said_to_be_idle() {
    let mut two = route(TCP, "shop/t", vec![parent("cart", None)], vec![backend("cart", 80)]);
    two.rules.push(two.rules[0].clone());
    let lab = lab([two]);
    let conditions = lab.conditions(Kind::TCPRoute, "shop/t");
    assert!(conditions.iter().any(|it| it.message.contains("never reached")), "{conditions:?}");
}

#[test]
fn references_are_resolved_or_keep_their_share_as_errors() {
    let of = |kind: &str, group: &str| {
        let mut it = backend("cart-v2", 80);
        it.target.kind = kind.into();
        it.target.group = group.into();
        it
    };
    let without_port = || {
        let mut it = backend("cart-v2", 80);
        it.target.port = None;
        it
    };
    let rows: Vec<(&str, &str, BackendRef, &str)> = vec![
        ("its own namespace", "shop/r", backend("cart-v2", 81), "ResolvedRefs"),
        ("another namespace, without a grant", "shop/r", backend("blog/cms", 80), "!RefNotPermitted"),
        ("another namespace, with a grant", "granted/r", backend("blog/cms", 80), "ResolvedRefs"),
        ("the namespace of its parent", "blog/r", backend("shop/cart-v2", 80), "ResolvedRefs"),
        ("no such Service", "shop/r", backend("gone", 80), "!BackendNotFound"),
        ("no such port", "shop/r", backend("cart-v2", 82), "!BackendNotFound"),
        ("no port", "shop/r", without_port(), "!BackendNotFound"),
        ("no Service", "shop/r", of("Bucket", "example.com"), "!InvalidKind"),
    ];
    let grant = ReferenceGrant {
        metadata: metadata("blog/grant", &[]),
        from: [HTTP, GRPC, TLS, TCP]
            .map(|kind| GrantFrom {
                group: "gateway.networking.k8s.io".into(),
                kind: kind.name().into(),
                namespace: "granted".into(),
            })
            .into(),
        to: vec![GrantTo { group: String::new(), kind: "Service".into(), name: Some("cms".into()) }],
    };
    let kinds = [HTTP, GRPC, TLS, TCP];
    let rows = kinds.iter().flat_map(|kind| rows.iter().map(move |row| (*kind, row.clone())));
    for (kind, (row, name, backend, expected)) in rows {
        let mut lab = lab([route(kind, name, vec![parent("shop/cart", None)], vec![backend])]);
        lab.put([Object::ReferenceGrant(grant.clone())]);
        let (reason, message) = said(&statements(&lab, kind, name, 0), "ResolvedRefs");
        assert_eq!(reason, expected, "{kind:?}, {row}: {message}");
        let routes = lab.mesh.routes(&service_key("shop/cart")).expect("routes");
        let only = &routes.attached()[0].route.rules[0].backends.all()[0];
        let invalid = matches!(only.target, Target::Invalid { .. });
        assert_eq!((invalid, only.weight), (expected.starts_with('!'), 1), "{kind:?}, {row}");
        lab.delete(Kind::ReferenceGrant, "blog/grant");
        if name == "granted/r" {
            let (reason, _) = said(&statements(&lab, kind, name, 0), "ResolvedRefs");
            assert_eq!(reason, "!RefNotPermitted", "{kind:?}, {row}: it was taken back");
        }
    }
}

/// The waypoint of one parent would send to the namespace of the other with its own identity.
#[test]
fn parents_in_several_namespaces_lend_none_of_them() {
    for (parents, expected) in [
        (&["shop/cart"][..], "ResolvedRefs"),
        (&["shop/cart", "shop/cart-v2"], "ResolvedRefs"),
        (&["shop/cart", "blog/cms"], "!RefNotPermitted"),
    ] {
        let all = parents.iter().map(|name| parent(name, None)).collect();
        let lab = lab([route(HTTP, "other/r", all, vec![backend("shop/cart-v2", 80)])]);
        let (reason, message) = said(&statements(&lab, HTTP, "other/r", 0), "ResolvedRefs");
        assert_eq!(reason, expected, "{parents:?}: {message}");
    }
}

#[test]
fn a_reference_follows_its_service() {
    let mut lab = lab([route(HTTP, "shop/r", vec![parent("cart", None)], vec![backend("cart-v3", 80)])]);
    let resolved = |lab: &Lab| said(&statements(lab, HTTP, "shop/r", 0), "ResolvedRefs").0;
    assert_eq!(resolved(&lab), "!BackendNotFound");
    let v3 = service("shop/cart-v3", &["10.96.0.4"], &[], vec![service_port(80, "8080")]);
    let (_, touched) = lab.put([Object::Service(v3)]);
    assert_eq!(resolved(&lab), "ResolvedRefs");
    assert_eq!(touched.routes, [service_key("shop/cart")].into(), "the routes of its parent changed");
    let (_, touched) = lab.delete(Kind::Service, "shop/cart-v3");
    assert_eq!((resolved(&lab).as_str(), touched.routes.len()), ("!BackendNotFound", 1));
    lab.delete(Kind::HTTPRoute, "shop/r");
    assert!(lab.mesh.routes(&service_key("shop/cart")).is_none(), "without routes it has no table");
    assert!(lab.world.standings().is_empty());
}

#[test]
fn mistakes_cost_their_rule_alone() {
    use RuleEffect::{Dropped, Fails, Incompatible};
    let with = |effects: &[Option<RuleEffect>]| {
        let mut route = route(HTTP, "shop/r", vec![parent("cart", None)], vec![backend("cart", 80)]);
        let rule = route.rules[0].clone();
        route.rules = effects
            .iter()
            .map(|effect| {
                let mistake = |effect| RuleMistake { field: "f".into(), message: "bad".into(), effect };
                let mut rule = rule.clone();
                rule.mistakes = effect.map(mistake).into_iter().collect();
                rule
            })
            .collect();
        route
    };
    // Accepted, PartiallyInvalid, ResolvedRefs, and the rules that are left.
    let rows: [(&str, &[Option<RuleEffect>], &str, &str, &str, usize); 6] = [
        ("none", &[None, None], "Accepted", "", "ResolvedRefs", 2),
        ("one is left out", &[None, Some(Dropped)], "Accepted", "UnsupportedValue", "ResolvedRefs", 1),
        ("one fails", &[None, Some(Fails)], "Accepted", "", "!InvalidKind", 2),
        ("all are left out", &[Some(Dropped)], "!UnsupportedValue", "", "ResolvedRefs", 0),
        ("all contradict themselves", &[Some(Incompatible)], "!IncompatibleFilters", "", "ResolvedRefs", 0),
        ("of both kinds", &[Some(Incompatible), Some(Dropped)], "!UnsupportedValue", "", "ResolvedRefs", 0),
    ];
    for (row, effects, accepted, partially, resolved, rules) in rows {
        let lab = lab([with(effects)]);
        let statements = statements(&lab, HTTP, "shop/r", 0);
        assert_eq!(said(&statements, "Accepted").0, accepted, "{row}");
        let (reason, message) = said(&statements, "PartiallyInvalid");
        assert_eq!(reason, partially, "{row}");
        assert!(reason.is_empty() || message.starts_with("Dropped Rule"), "{row}: {message}");
        assert_eq!(said(&statements, "ResolvedRefs").0, resolved, "{row}");
        let routes = lab.mesh.routes(&service_key("shop/cart"));
        let found = routes.map_or(0, |routes| routes.attached()[0].route.rules.len());
        assert_eq!(found, rules, "{row}");
    }
}

#[test]
fn a_route_says_whether_a_waypoint_applies_it() {
    let bound = |lab: &Lab| said(&statements(lab, HTTP, "shop/r", 0), "ambit.dev/WaypointBound").0;
    let mut lab = lab([route(HTTP, "shop/r", vec![parent("cart", None)], vec![backend("cart", 80)])]);
    assert_eq!(bound(&lab), "!NoWaypoint");
    let (_, message) = said(&statements(&lab, HTTP, "shop/r", 0), "Accepted");
    assert!(message.contains("has no waypoint"), "{message}");
    let conditions = lab.conditions(Kind::HTTPRoute, "shop/r");
    assert!(
        conditions.iter().any(|it| it.message.contains("has no waypoint")),
        "also in the log: {conditions:?}"
    );

    let labels = [("istio.io/use-waypoint", "wp")];
    let Object::Service(cart) = shop().remove(0) else { panic!("a Service") };
    let labelled = ambit_core::derive::Service { metadata: metadata("shop/cart", &labels), ..cart };
    lab.put([Object::Service(labelled), Object::Gateway(gateway("shop/wp", &[]))]);
    assert_eq!(bound(&lab), "!NotProgrammed");
    lab.put(waypoint("shop/wp", true));
    assert_eq!(bound(&lab), "Bound");
    lab.delete(Kind::Gateway, "shop/wp");
    assert_eq!(bound(&lab), "!NoWaypoint");
}
