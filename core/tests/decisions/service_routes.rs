//! Which of a service's routes a request is held against.

use std::sync::Arc;

use ambit_core::route::{Attached, Match, Request, Route, RouteKey, RouteKind, ServiceRoutes};
use http::{HeaderMap, Method};

use crate::build::service_key;
use crate::route::{route, rule};

fn one(name: &str) -> Arc<Route> {
    route(name, 0, vec![rule(name, vec![Match::any()])])
}

fn attach(name: &str, port: Option<u16>, consumer: Option<&str>) -> Attached {
    Attached { route: one(name), port, consumer: consumer.map(Into::into) }
}

fn found(routes: &ServiceRoutes, port: u16, client: &str) -> Option<String> {
    let (method, headers) = (Method::GET, HeaderMap::new());
    let request = Request { method: &method, path: "/", query: None, headers: &headers };
    let found = routes.table(port, client)?.find(&request)?;
    Some(found.route.key.name.to_string())
}

#[test]
fn tables_by_port_and_client() {
    let consumers = || {
        vec![
            attach("producer", None, None),
            attach("blog", None, Some("blog")),
            attach("press-80", Some(80), Some("press")),
        ]
    };
    let rows: Vec<(&str, Vec<Attached>, u16, &str, Option<&str>)> = vec![
        ("nothing attached", vec![], 80, "shop", None),
        ("for every port", vec![attach("a", None, None)], 80, "shop", Some("a")),
        ("for this port", vec![attach("a", Some(80), None)], 80, "shop", Some("a")),
        ("for another port", vec![attach("a", Some(81), None)], 80, "shop", None),
        // Of the same age, the first by name wins.
        (
            "both are one table",
            vec![attach("b", Some(80), None), attach("a", None, None)],
            80,
            "shop",
            Some("a"),
        ),
        (
            "elsewhere the one for all",
            vec![attach("b", Some(80), None), attach("a", None, None)],
            81,
            "shop",
            Some("a"),
        ),
        ("a consumer's own", consumers(), 80, "blog", Some("blog")),
        ("not for others", consumers(), 80, "shop", Some("producer")),
        ("nor where it has none for the port", consumers(), 81, "press", Some("producer")),
        ("a consumer's alone", vec![attach("blog", None, Some("blog"))], 80, "shop", None),
    ];
    for (row, attached, port, client, expected) in rows {
        let routes = ServiceRoutes::new(service_key("shop/cart"), attached);
        assert_eq!(found(&routes, port, client).as_deref(), expected, "{row}");
    }
}

#[test]
fn equality_is_of_what_is_attached() {
    let key = |name: &str| RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: name.into() };
    assert_ne!(key("a"), key("b"));
    let forth =
        ServiceRoutes::new(service_key("shop/cart"), vec![attach("a", None, None), attach("b", None, None)]);
    let back =
        ServiceRoutes::new(service_key("shop/cart"), vec![attach("b", None, None), attach("a", None, None)]);
    assert!(back.table(80, "shop").is_some());
    assert_eq!(forth, back, "whatever the order, and whether or not a table was made");
    assert_ne!(forth, ServiceRoutes::new(service_key("shop/cart"), vec![attach("a", None, None)]));
}
