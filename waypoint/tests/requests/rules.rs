//! What rules do with requests: filters, weights, mirrors.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ambit_core::mesh::Change;
use ambit_core::model::AppProtocol;
use ambit_core::route::{
    Backend, Cors, Filter, HeaderChange, Match, Mirror, OriginMatch, PathMatch, PathRewrite, Redirect,
    RedirectStatus, Rewrite, Rule, Scheme, Target,
};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;

use crate::lab::{
    Lab, backend, echo, filtered, full, get, get2, handler, http1, key, routes, rule, tally, told, until,
};

fn change(set: &[(&'static str, &'static str)], remove: &[&'static str]) -> HeaderChange {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    HeaderChange {
        set: set.iter().map(pair).collect(),
        add: Vec::new(),
        remove: remove.iter().map(|name| HeaderName::from_static(name)).collect(),
    }
}

fn at(prefix: &str, rule: Rule) -> Rule {
    Rule { matches: vec![Match { path: PathMatch::Prefix(prefix.into()), ..Match::any() }], ..rule }
}

fn redirect(redirect: Redirect) -> Rule {
    Rule { filters: vec![Filter::Redirect(redirect)], ..rule(Vec::new()) }
}

const NO_REDIRECT: Redirect =
    Redirect { scheme: None, hostname: None, path: None, port: None, status: RedirectStatus::Found };

#[tokio::test]
async fn redirects_answer_with_their_location() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let prefix = |to: &str| Some(PathRewrite::Prefix(to.into()));
    lab.put([routes(
        "cart",
        vec![
            at("/host", redirect(Redirect { hostname: Some("example.org".into()), ..NO_REDIRECT })),
            at("/scheme", redirect(Redirect { scheme: Some(Scheme::Https), ..NO_REDIRECT })),
            at(
                "/port",
                redirect(Redirect { port: Some(8443), status: RedirectStatus::SeeOther, ..NO_REDIRECT }),
            ),
            at("/old", redirect(Redirect { path: prefix("/new/"), ..NO_REDIRECT })),
        ],
    )]);
    let mut client = lab.http1(cart).await;
    for (path, status, location) in [
        ("/host/x?y=1", 302, "http://example.org/host/x?y=1"),
        ("/scheme", 302, "https://cart.shop/scheme"),
        ("/port", 303, "http://cart.shop:8443/port"),
        ("/old/a", 302, "http://cart.shop/new/a"),
        ("/old", 302, "http://cart.shop/new"),
    ] {
        client.ready().await.expect("kept alive");
        let told = told(client.send_request(get(path)).await.expect("a response")).await;
        assert_eq!(told.status, status, "{path}");
        let location_told = told.header("location").expect("a location");
        assert_eq!(location_told.trim_end_matches('/'), location, "{path}");
    }
}

#[tokio::test]
async fn rewrites_and_header_changes_reach_endpoint_and_client() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    let rewrite = Rewrite { hostname: Some("inner".into()), path: Some(PathRewrite::Prefix("/v2".into())) };
    let filters = vec![
        Filter::RequestHeaders(change(&[("x-rule", "rule")], &["x-debug"])),
        Filter::ResponseHeaders(change(&[("x-answer", "rule")], &[])),
        Filter::Rewrite(rewrite),
    ];
    let of_backend = Backend {
        request_headers: vec![change(&[("x-backend", "backend")], &[])],
        response_headers: vec![change(&[("x-answer-backend", "backend")], &[])],
        ..backend("cart", 1)
    };
    lab.put([routes("cart", vec![at("/v1", Rule { filters, ..rule(vec![of_backend]) })])]);
    let mut request = get("/v1/items?a=b");
    request.headers_mut().insert("x-debug", HeaderValue::from_static("1"));
    let told = told(lab.http1(cart).await.send_request(request).await.expect("a response")).await;
    assert!(told.text.contains("GET /v2/items?a=b HTTP/1.1"), "{}", told.text);
    assert_eq!(told.sent("host"), Some("inner"));
    assert_eq!(told.sent("x-rule"), Some("rule"));
    assert_eq!(told.sent("x-backend"), Some("backend"));
    assert_eq!(told.sent("x-debug"), None);
    assert_eq!(told.header("x-answer"), Some("rule"));
    assert_eq!(told.header("x-answer-backend"), Some("backend"));
}

#[tokio::test]
async fn two_spellings_of_a_path_take_one_route() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    lab.put([routes(
        "cart",
        vec![at("/admin", redirect(NO_REDIRECT)), at("/", rule(vec![backend("cart", 1)]))],
    )]);
    let mut client = lab.http1(cart).await;
    for (path, status) in [
        ("/admin/x", 302),
        ("/%61dmin/x", 302),
        ("/public/../admin/x", 302),
        ("/public/%2e%2E/admin/x", 302),
        ("/./admin/x", 302),
        ("/administrator", 200),
    ] {
        client.ready().await.expect("kept alive");
        let told = told(client.send_request(get(path)).await.expect("a response")).await;
        assert_eq!(told.status, status, "{path}");
    }
}

#[tokio::test]
async fn browsers_are_answered_for_other_origins() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    let cors = Cors {
        origins: vec![OriginMatch::Exact("https://shop.example".into())],
        methods: vec!["PUT".into()],
        max_age: 60,
        ..Cors::default()
    };
    lab.put([routes("cart", vec![filtered(vec![Filter::Cors(cors)], "cart")])]);
    let mut client = lab.http1(cart).await;
    let mut ask = get("/");
    *ask.method_mut() = Method::OPTIONS;
    ask.headers_mut().insert("origin", HeaderValue::from_static("https://shop.example"));
    ask.headers_mut().insert("access-control-request-method", HeaderValue::from_static("PUT"));
    let preflight = told(client.send_request(ask).await.expect("a response")).await;
    assert_eq!(preflight.status, StatusCode::NO_CONTENT);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://shop.example"));
    assert_eq!(preflight.header("access-control-allow-methods"), Some("PUT"));
    assert_eq!(app.requests(), 0, "a preflight request is the rule's to answer");
    client.ready().await.expect("kept alive");
    let mut request = get("/");
    request.headers_mut().insert("origin", HeaderValue::from_static("https://shop.example"));
    let told = told(client.send_request(request).await.expect("a response")).await;
    assert_eq!(told.header("access-control-allow-origin"), Some("https://shop.example"));
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn routes_without_an_answer_say_so() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http2);
    let invalid =
        Backend { target: Target::Invalid { reason: "no such service".into() }, ..backend("cart", 1) };
    lab.put([routes(
        "cart",
        vec![
            at("/invalid", rule(vec![invalid])),
            at("/missing", rule(vec![backend("nowhere", 1)])),
            at("/zero", rule(vec![backend("cart", 0)])),
            at("/empty", rule(vec![backend("cart", 1)])),
        ],
    )]);
    let mut client = lab.http2(cart).await;
    for (path, status, grpc) in [
        ("/invalid", 500, "2"),
        ("/missing", 500, "2"),
        ("/zero", 500, "2"),
        ("/empty", 503, "14"),
        ("/else", 404, "12"),
    ] {
        let plain = told(client.send_request(get2(path)).await.expect("a response")).await;
        assert_eq!(plain.status, status, "{path}");
        let mut request = get2(path);
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let told = told(client.send_request(request).await.expect("a response")).await;
        assert_eq!((told.status.as_u16(), told.header("grpc-status")), (200, Some(grpc)), "{path}");
    }
}

#[tokio::test]
async fn weights_are_kept_and_an_invalid_backend_keeps_its_share() {
    const REQUESTS: usize = 2000;
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http2);
    lab.service("cart-a", 101, AppProtocol::Http2);
    lab.service("cart-b", 102, AppProtocol::Http2);
    lab.app("a-1", 11, "cart-a", handler(|_| async { Response::new(full("a")) })).await;
    lab.app("b-1", 12, "cart-b", handler(|_| async { Response::new(full("b")) })).await;
    let invalid = Backend { target: Target::Invalid { reason: "gone".into() }, ..backend("cart", 1) };
    lab.put([routes("cart", vec![rule(vec![backend("cart-a", 6), backend("cart-b", 3), invalid])])]);
    let client = lab.http2(cart).await;
    let asking = (0..20).map(|_| {
        let mut client = client.clone();
        async move {
            let mut names = Vec::new();
            for _ in 0..REQUESTS / 20 {
                names.push(told(client.send_request(get2("/")).await.expect("a response")).await.text);
            }
            names
        }
    });
    let counts = tally(futures::future::join_all(asking).await.into_iter().flatten());
    let shares = BTreeMap::from([("a", 0.6), ("b", 0.3), ("no backend", 0.1)]);
    let distance: f64 = shares
        .iter()
        .map(|(name, share)| {
            let expected = share * f64::from(u32::try_from(REQUESTS).expect("small"));
            let count = f64::from(u32::try_from(counts.get(*name).copied().unwrap_or(0)).expect("small"));
            (count - expected).powi(2) / expected
        })
        .sum();
    // Chi-square with two degrees of freedom: exceeded once in 100,000 runs.
    assert!(distance < 23.0, "{counts:?} is {distance} from 6:3:1");
}

#[tokio::test]
async fn a_mirror_gets_the_whole_request_and_disturbs_nothing() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    lab.service("copy", 101, AppProtocol::Http11);
    lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    let copied = Arc::new(Mutex::new(Vec::new()));
    let keeping = copied.clone();
    let copy = handler(move |request: Request<hyper::body::Incoming>| {
        let keeping = keeping.clone();
        async move {
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            keeping.lock().expect("no panic").push(String::from_utf8_lossy(&body).into_owned());
            // It fails, and nobody hears of it.
            Response::builder().status(500).body(full("")).expect("a response")
        }
    });
    lab.app("copy-1", 12, "copy", copy).await;
    let mirror = |name: &str, numerator| {
        let target = Target::Service { service: key(name), port: 80 };
        Filter::Mirror(Mirror { target, numerator, denominator: 100 })
    };
    let filters = vec![mirror("copy", 100), mirror("copy", 0), mirror("nowhere", 100)];
    lab.put([routes("cart", vec![filtered(filters, "cart")])]);
    let mut client = lab.http1(cart).await;
    for text in ["", "one", "two"] {
        client.ready().await.expect("kept alive");
        let mut request = get("/");
        *request.method_mut() = Method::POST;
        *request.body_mut() = full(text);
        let told = told(client.send_request(request).await.expect("a response")).await;
        assert_eq!(told.status, StatusCode::OK);
        assert!(told.text.ends_with(&format!("\n{text}")), "{}", told.text);
    }
    until("three copies", || copied.lock().expect("no panic").len() == 3).await;
    let mut bodies = copied.lock().expect("no panic").clone();
    bodies.sort();
    assert_eq!(bodies, ["", "one", "two"]);
}

#[tokio::test]
async fn routes_of_a_clients_own_namespace_and_changes_of_routes_apply_at_once() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    let mut client = http1(lab.tunnel(cart).await.expect("a tunnel")).await;
    for (name, change, status) in [
        ("without routes", None, 200),
        ("a redirect", Some(routes("cart", vec![redirect(NO_REDIRECT)])), 302),
        ("no rules at all", Some(routes("cart", vec![at("/other", rule(vec![backend("cart", 1)]))])), 404),
        ("removed again", Some(Change::RemoveRoutes(key("cart"))), 200),
    ] {
        lab.put(change);
        client.ready().await.expect("kept alive");
        let told = told(client.send_request(get("/")).await.expect("a response")).await;
        assert_eq!(told.status, status, "{name}, on the same connection");
    }
}
