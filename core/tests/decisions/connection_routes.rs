//! Which route serves a connection: TLSRoutes by server name, TCPRoutes by age.

use std::sync::Arc;

use ambit_core::route::{
    Attached, ConnectionTable, PortRoutes, Route, RouteKey, RouteKind, ServerNameMatch, ServiceRoutes,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::build::service_key;

fn route(kind: RouteKind, name: &str, created: i64, server_names: &[&str]) -> Arc<Route> {
    let key = RouteKey { kind, namespace: "shop".into(), name: name.into() };
    let parse = |name: &&str| ServerNameMatch::parse(name).expect("a server name");
    let server_names = server_names.iter().map(parse).collect();
    Arc::new(Route { key, created, server_names, rules: Vec::new() })
}

fn found<'a>(table: &'a ConnectionTable, server_name: Option<&str>) -> &'a str {
    table.find(server_name).map_or("none", |route| &route.key.name)
}

#[test]
fn hostnames_of_tls_routes() {
    let rows: [(&str, Option<&str>); 13] = [
        ("example.com", Some("example.com")),
        ("EXAMPLE.com", Some("example.com")),
        ("*.example.com", Some("*.example.com")),
        ("localhost", Some("localhost")),
        ("a-1.example.com", Some("a-1.example.com")),
        ("", None),
        ("*", None),
        ("*.", None),
        ("a.*.com", None),
        ("example.com.", None),
        ("-a.com", None),
        ("a_b.com", None),
        ("10.0.0.1", None),
    ];
    for (text, expected) in rows {
        let found = ServerNameMatch::parse(text).map(|it| it.to_string());
        assert_eq!(found.as_deref(), expected, "{text:?}");
    }
}

#[test]
fn the_most_specific_server_name_wins() {
    let tls = |name: &str, created, names: &[&str]| route(RouteKind::Tls, name, created, names);
    let routes = [
        tls("any", 0, &[]),
        tls("wide", 0, &["*.com"]),
        tls("below", 0, &["*.example.com"]),
        tls("exact", 9, &["a.example.com", "b.example.com"]),
        tls("younger", 10, &["b.example.com", "c.example.com"]),
        tls("z-as-old", 9, &["d.org"]),
        tls("a-as-old", 9, &["d.org"]),
    ];
    let table = ConnectionTable::tls(&routes);
    for (name, expected) in [
        (Some("a.example.com"), "exact"),
        (Some("A.Example.COM"), "exact"),
        (Some("x.example.com"), "below"),
        (Some("x.y.example.com"), "below"),
        (Some("example.com"), "wide"),
        (Some("b.example.com"), "exact"),
        (Some("c.example.com"), "younger"),
        (Some("d.org"), "a-as-old"),
        (Some("com"), "any"),
        (Some("else.org"), "any"),
        (None, "any"),
    ] {
        assert_eq!(found(&table, name), expected, "{name:?}");
    }
    let table = ConnectionTable::tls(&routes[1..]);
    assert_eq!((found(&table, Some("else.org")), found(&table, None)), ("none", "none"));
}

#[test]
fn the_oldest_tcp_route_serves_all() {
    let tcp = |name: &str, created| route(RouteKind::Tcp, name, created, &[]);
    for (row, routes, expected) in [
        ("one", vec![tcp("a", 0)], "a"),
        ("the older", vec![tcp("a", 2), tcp("b", 1)], "b"),
        ("of one age by name", vec![tcp("b", 1), tcp("a", 1)], "a"),
        ("none", vec![], "none"),
    ] {
        let table = ConnectionTable::tcp(&routes);
        assert_eq!((found(&table, None), found(&table, Some("a.com"))), (expected, expected), "{row}");
        assert!(!table.is_tls(), "{row}");
    }
}

#[test]
fn a_port_has_routes_of_the_first_kind() {
    use RouteKind::{Grpc, Http, Tcp, Tls};
    let of = |kinds: &[RouteKind]| {
        let attach = |kind: &RouteKind| Attached {
            route: route(*kind, kind.name(), 0, &[]),
            port: None,
            consumer: None,
        };
        let routes = ServiceRoutes::new(service_key("shop/cart"), kinds.iter().map(attach).collect());
        match routes.at(80, "shop") {
            None => "none",
            Some(PortRoutes::Requests(_)) => "requests",
            Some(PortRoutes::Connections(table)) if table.is_tls() => "tls",
            Some(PortRoutes::Connections(_)) => "tcp",
        }
    };
    for (kinds, expected) in [
        (&[][..], "none"),
        (&[Tcp], "tcp"),
        (&[Tls], "tls"),
        (&[Tcp, Tls], "tls"),
        (&[Tcp, Tls, Http], "requests"),
        (&[Grpc, Tcp], "requests"),
    ] {
        assert_eq!(of(kinds), expected, "{kinds:?}");
    }
}

const NAMES: [&str; 6] = ["com", "a.com", "b.com", "x.a.com", "y.x.a.com", "org"];

/// The specification's sentences, one after the other.
fn slow(routes: &[Arc<Route>], name: &str) -> Option<String> {
    let mut found: Vec<(usize, usize, i64, &RouteKey)> = Vec::new();
    for route in routes {
        let key = &route.key;
        if route.server_names.is_empty() {
            found.push((2, 0, route.created, key));
        }
        for pattern in &route.server_names {
            match pattern {
                ServerNameMatch::Exact(exact) if **exact == *name => found.push((0, 0, route.created, key)),
                ServerNameMatch::Below(parent) if name.ends_with(&format!(".{parent}")) => {
                    found.push((1, usize::MAX - parent.len(), route.created, key));
                }
                _ => {}
            }
        }
    }
    found.into_iter().min().map(|(.., key)| key.name.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_table_finds_what_a_slow_search_finds(
        sets in vec((0_i64..3, vec((any::<bool>(), select(NAMES.to_vec())), 0..3)), 0..6),
        name in select(NAMES.to_vec()),
    ) {
        let routes: Vec<Arc<Route>> = sets.iter().enumerate().map(|(index, (created, names))| {
            let text =
                |(below, name): &(bool, &str)| if *below { format!("*.{name}") } else { (*name).into() };
            let names: Vec<String> = names.iter().map(text).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            route(RouteKind::Tls, &index.to_string(), *created, &names)
        }).collect();
        let table = ConnectionTable::tls(&routes);
        let found = table.find(Some(name)).map(|route| route.key.name.to_string());
        prop_assert_eq!(found, slow(&routes, name));
    }
}
