//! Finding routes and applying filters, as Gateway API describes them: rows of a request and what becomes of
//! it.

use std::sync::Arc;
use std::time::Duration;

use ambit_core::route::{
    Authority, Backend, Backends, Cors, CorsAnswer, HeaderChange, HeaderMatch, Match, Mirror, OriginMatch,
    PathMatch, PathRewrite, Pattern, QueryMatch, Redirect, RedirectStatus, Request, Retry, Route, RouteKey,
    RouteKind, Rule, Scheme, Table, Target, Timeouts, ValueMatch, normalized,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

/// A rule with these matches and nothing else; its name is what tests look for.
pub(crate) fn rule(name: &str, matches: Vec<Match>) -> Rule {
    Rule {
        name: Some(name.into()),
        matches,
        filters: Vec::new(),
        backends: Backends::default(),
        timeouts: Timeouts::default(),
        retry: None,
    }
}

/// A route of a name and an age.
pub(crate) fn route(name: &str, created: i64, rules: Vec<Rule>) -> Arc<Route> {
    let key = RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: name.into() };
    Arc::new(Route { key, created, server_names: Vec::new(), rules })
}

fn exact(path: &str) -> Match {
    Match { path: PathMatch::Exact(path.into()), ..Match::any() }
}

fn prefix(path: &str) -> Match {
    Match { path: PathMatch::Prefix(path.into()), ..Match::any() }
}

fn pattern(text: &str) -> Match {
    Match { path: PathMatch::Pattern(Pattern::new(text).expect("an expression")), ..Match::any() }
}

fn header(name: &'static str, value: &str) -> HeaderMatch {
    HeaderMatch { name: HeaderName::from_static(name), value: ValueMatch::Exact(value.into()) }
}

fn parameter(name: &str, value: &str) -> QueryMatch {
    QueryMatch { name: name.into(), value: ValueMatch::Exact(value.into()) }
}

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        map.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"));
    }
    map
}

fn found(table: &Table, method: &Method, target: &str, lines: &[(&'static str, &str)]) -> Option<String> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let headers = headers(lines);
    let request = Request { method, path, query, headers: &headers };
    table.find(&request).map(|it| it.rule.name.as_deref().unwrap_or("").to_owned())
}

#[test]
fn paths_match_by_element() {
    let rows = [
        ("exact", exact("/cart"), "/cart", true),
        ("exact, with a slash", exact("/cart"), "/cart/", false),
        ("exact, other case", exact("/cart"), "/Cart", false),
        ("prefix itself", prefix("/cart"), "/cart", true),
        ("prefix with a slash", prefix("/cart"), "/cart/", true),
        ("prefix of an element", prefix("/cart"), "/carts", false),
        ("prefix of a path", prefix("/cart"), "/cart/items", true),
        ("prefix written with a slash", prefix("/cart/"), "/cart", true),
        ("prefix written with a slash, below", prefix("/cart/"), "/cart/items", true),
        ("the root is a prefix of all", prefix("/"), "/x", true),
        ("an empty element is one", prefix("/a//b"), "/a/b", false),
        ("an empty element, met", prefix("/a//b"), "/a//b/c", true),
        ("expressions match the whole path", pattern("/v[0-9]+"), "/v12", true),
        ("not a part of it", pattern("/v[0-9]+"), "/v12/x", false),
        ("alternatives stay together", pattern("/a|/b"), "/b/c", false),
        (
            "a gRPC method",
            Match { path: PathMatch::grpc(Some("a.B"), Some("Get")), ..Match::any() },
            "/a.B/Get",
            true,
        ),
        (
            "another one",
            Match { path: PathMatch::grpc(Some("a.B"), Some("Get")), ..Match::any() },
            "/a.B/Put",
            false,
        ),
        (
            "a gRPC service",
            Match { path: PathMatch::grpc(Some("a.B"), None), ..Match::any() },
            "/a.B/Put",
            true,
        ),
        (
            "a service that begins alike",
            Match { path: PathMatch::grpc(Some("a.B"), None), ..Match::any() },
            "/a.Bc/Put",
            false,
        ),
        (
            "a method of any service",
            Match { path: PathMatch::grpc(None, Some("Get")), ..Match::any() },
            "/c.D/Get",
            true,
        ),
        (
            "its name has no dots",
            Match { path: PathMatch::grpc(None, Some("G.t")), ..Match::any() },
            "/c.D/Get",
            false,
        ),
    ];
    for (name, matched, path, expected) in rows {
        let table = Table::new(&[route("r", 0, vec![rule("it", vec![matched])])]);
        assert_eq!(found(&table, &Method::GET, path, &[]).is_some(), expected, "{name}");
    }
}

#[test]
fn headers_and_parameters_are_all_needed() {
    let matched = Match {
        method: Some(Method::GET),
        headers: vec![header("x-user", "ann"), header("x-tags", "a,b")],
        query: vec![parameter("q", "a b"), parameter("empty", "")],
        ..Match::any()
    };
    let table = Table::new(&[route("r", 0, vec![rule("it", vec![matched])])]);
    let both = [("x-user", "ann"), ("x-tags", "a"), ("x-tags", "b")];
    let rows: [(&str, Method, &str, &[(&'static str, &str)], bool); 9] = [
        ("all hold", Method::GET, "/?q=a+b&empty=", &both, true),
        ("percent-encoded", Method::GET, "/?q=a%20b&empty", &both, true),
        ("an encoded name", Method::GET, "/?%71=a%20b&empty", &both, true),
        ("the first of two counts", Method::GET, "/?q=c&q=a+b&empty", &both, false),
        ("another method", Method::POST, "/?q=a+b&empty", &both, false),
        ("a header is missing", Method::GET, "/?q=a+b&empty", &both[..1], false),
        ("one line of two", Method::GET, "/?q=a+b&empty", &both[..2], false),
        ("a parameter is missing", Method::GET, "/?q=a+b", &both, false),
        ("no query", Method::GET, "/", &both, false),
    ];
    for (name, method, target, lines, expected) in rows {
        assert_eq!(found(&table, &method, target, lines).is_some(), expected, "{name}");
    }
}

#[test]
fn the_most_specific_match_wins() {
    let method = |it: Match| Match { method: Some(Method::GET), ..it };
    let with_headers = |it: Match, count: usize| {
        let all = [header("a", "1"), header("b", "1"), header("c", "1")];
        Match { headers: all[..count].to_vec(), ..it }
    };
    let with_query = |it: Match| Match { query: vec![parameter("q", "1")], ..it };
    let rows = [
        ("exact before prefix", vec![prefix("/a/b"), exact("/a/b")], 1),
        ("the longer prefix", vec![prefix("/a"), prefix("/a/b"), prefix("/")], 1),
        ("expressions last", vec![pattern("/a/.*"), prefix("/")], 1),
        ("the longer expression", vec![pattern("/a/.*"), pattern("/a/[a-z]+")], 1),
        ("a method before headers", vec![with_headers(prefix("/a"), 3), method(prefix("/a"))], 1),
        ("path before method", vec![method(prefix("/a")), prefix("/a/b")], 1),
        ("more headers", vec![with_headers(prefix("/a"), 1), with_headers(prefix("/a"), 2)], 1),
        ("headers before parameters", vec![with_query(prefix("/a")), with_headers(prefix("/a"), 1)], 1),
        ("parameters before nothing", vec![prefix("/a"), with_query(prefix("/a"))], 1),
        ("the first in the list", vec![prefix("/a"), prefix("/a/")], 0),
    ];
    for (name, matches, expected) in rows {
        let rules = matches.into_iter().enumerate().map(|(at, it)| rule(&at.to_string(), vec![it])).collect();
        let table = Table::new(&[route("r", 0, rules)]);
        let lines = [("a", "1"), ("b", "1"), ("c", "1")];
        assert_eq!(found(&table, &Method::GET, "/a/b?q=1", &lines), Some(expected.to_string()), "{name}");
    }
}

#[test]
fn ties_between_routes_go_to_the_oldest_then_to_the_name() {
    let one = |name: &str, created| route(name, created, vec![rule(name, vec![prefix("/")])]);
    let rows = [
        ("the oldest", vec![one("a", 2), one("b", 1)], "b"),
        ("the name", vec![one("b", 1), one("a", 1)], "a"),
        (
            "more specific though younger",
            vec![one("a", 1), route("c", 9, vec![rule("c", vec![prefix("/x")])])],
            "c",
        ),
    ];
    for (name, routes, expected) in rows {
        let table = Table::new(&routes);
        assert_eq!(found(&table, &Method::GET, "/x", &[]).as_deref(), Some(expected), "{name}");
    }
}

#[test]
fn expressions_that_cannot_be_read_are_refused() {
    for text in ["(", "a)(b", "[z-a]", "(?:a{1000}){1000}"] {
        let error = Pattern::new(text).unwrap_err().to_string();
        assert!(error.starts_with("failed to read the regular expression"), "{text}: {error}");
    }
}

#[test]
fn backends_get_their_share() {
    const POINTS: u32 = 10_000;
    let backend = |name: &str, weight| Backend {
        target: Target::Invalid { reason: name.into() },
        weight,
        request_headers: Vec::new(),
        response_headers: Vec::new(),
    };
    let rows: [(&str, &[(&str, u32)]); 4] = [
        ("one", &[("a", 1)]),
        ("a canary of 1 %", &[("a", 99), ("b", 1)]),
        ("none for a weight of 0", &[("a", 0), ("b", 3), ("c", 0), ("d", 1)]),
        ("large weights", &[("a", 1_000_000), ("b", 1_000_000)]),
    ];
    for (name, weights) in rows {
        let backends = Backends::new(weights.iter().map(|(name, weight)| backend(name, *weight)).collect());
        let sum: u32 = weights.iter().map(|(_, weight)| weight).sum();
        for (wanted, weight) in weights {
            let target = Target::Invalid { reason: (*wanted).into() };
            let hits = (0..POINTS)
                .filter(|point| {
                    backends.pick(point * (u32::MAX / POINTS)).expect("a backend").target == target
                })
                .count();
            let expected = f64::from(POINTS) * f64::from(*weight) / f64::from(sum);
            let hits = f64::from(u32::try_from(hits).expect("a count"));
            assert!(
                (hits - expected).abs() <= 2.0,
                "{name}: {wanted} was chosen {hits} times, not {expected}"
            );
        }
    }
    assert_eq!(Backends::default().pick(7), None);
    assert_eq!(Backends::new(vec![backend("a", 0)]).pick(7), None);
    let backends = Backends::new(vec![backend("a", 1), backend("b", 1)]);
    assert_eq!(backends.pick(u32::MAX), backends.all().last());
}

#[test]
fn mirrors_take_their_share() {
    let rows = [
        ("all", 1, 1, 1.0),
        ("none", 0, 100, 0.0),
        ("half", 50, 100, 0.5),
        ("one of a thousand", 1, 1000, 0.001),
    ];
    for (name, numerator, denominator, share) in rows {
        let mirror = Mirror { target: Target::Invalid { reason: "".into() }, numerator, denominator };
        let taken = (0..100_000_u32).filter(|it| mirror.takes(it * (u32::MAX / 100_000))).count();
        let taken = f64::from(u32::try_from(taken).expect("a count")) / 100_000.0;
        assert!((taken - share).abs() < 0.000_1, "{name}: {taken}");
        assert!(numerator == 0 || mirror.takes(0), "{name}");
        assert_eq!(mirror.takes(u32::MAX), numerator == denominator, "{name}");
    }
}

#[test]
fn header_changes_are_applied() {
    let pair = |name: &'static str, value: &'static str| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let change = HeaderChange {
        set: vec![pair("set", "new"), pair("both", "set")],
        add: vec![pair("add", "second"), pair("both", "added")],
        remove: vec![HeaderName::from_static("gone")],
    };
    let mut map =
        headers(&[("set", "old"), ("set", "older"), ("add", "first"), ("gone", "x"), ("kept", "k")]);
    change.apply(&mut map);
    let expected = headers(&[
        ("set", "new"),
        ("both", "set"),
        ("both", "added"),
        ("add", "first"),
        ("add", "second"),
        ("kept", "k"),
    ]);
    assert_eq!(map, expected);
}

#[test]
fn paths_are_rewritten_with_one_slash() {
    let full = |path: &str| PathRewrite::Full(path.into());
    let replaced = |path: &str| PathRewrite::Prefix(path.into());
    let at = |path: &str| PathMatch::Prefix(path.into());
    let rows = [
        ("all of it", full("/one"), "/foo/bar", at("/foo"), "/one"),
        ("a prefix", replaced("/xyz"), "/foo/bar", at("/foo"), "/xyz/bar"),
        ("its replacement has a slash", replaced("/xyz/"), "/foo/bar", at("/foo"), "/xyz/bar"),
        ("the match has a slash", replaced("/xyz"), "/foo/bar", at("/foo/"), "/xyz/bar"),
        ("both have one", replaced("/xyz/"), "/foo/bar", at("/foo/"), "/xyz/bar"),
        ("nothing remains", replaced("/xyz"), "/foo", at("/foo"), "/xyz"),
        ("nothing but a slash remains", replaced("/xyz"), "/foo/", at("/foo"), "/xyz/"),
        ("an empty replacement", replaced(""), "/foo/bar", at("/foo"), "/bar"),
        ("the root as replacement", replaced("/"), "/foo/bar", at("/foo"), "/bar"),
        ("and nothing remains", replaced("/"), "/foo", at("/foo"), "/"),
        ("the root is replaced", replaced("/xyz"), "/bar", at("/"), "/xyz/bar"),
        ("no prefix had matched", replaced("/xyz"), "/foo", PathMatch::Exact("/foo".into()), "/foo"),
    ];
    for (name, rewrite, path, matched, expected) in rows {
        assert_eq!(rewrite.apply(path, &matched), expected, "{name}");
    }
}

#[test]
fn redirects_say_where_to() {
    let redirect = |change: fn(&mut Redirect)| {
        let mut it = Redirect {
            scheme: None,
            hostname: None,
            path: None,
            port: None,
            status: RedirectStatus::default(),
        };
        change(&mut it);
        it
    };
    let rows: [(&str, u16, fn(&mut Redirect), &str); 9] = [
        ("nothing changes", 80, |_| (), "http://shop/cart/x?q=1"),
        ("the dialled port", 8080, |_| (), "http://shop:8080/cart/x?q=1"),
        ("a host", 8080, |it| it.hostname = Some("example.org".into()), "http://example.org:8080/cart/x?q=1"),
        ("a scheme has its own port", 8080, |it| it.scheme = Some(Scheme::Https), "https://shop/cart/x?q=1"),
        ("the same scheme, too", 8080, |it| it.scheme = Some(Scheme::Http), "http://shop/cart/x?q=1"),
        ("a port", 80, |it| it.port = Some(8443), "http://shop:8443/cart/x?q=1"),
        ("a port that is the scheme's", 8080, |it| it.port = Some(80), "http://shop/cart/x?q=1"),
        ("a path", 80, |it| it.path = Some(PathRewrite::Full("/new".into())), "http://shop/new?q=1"),
        ("a prefix", 80, |it| it.path = Some(PathRewrite::Prefix("/new".into())), "http://shop/new/x?q=1"),
    ];
    for (name, port, change, expected) in rows {
        let asked = Authority { scheme: Scheme::Http, host: "shop", port };
        let matched = PathMatch::Prefix("/cart".into());
        assert_eq!(redirect(change).location(asked, "/cart/x", Some("q=1"), &matched), expected, "{name}");
    }
    let codes = [
        RedirectStatus::MovedPermanently,
        RedirectStatus::Found,
        RedirectStatus::SeeOther,
        RedirectStatus::TemporaryRedirect,
        RedirectStatus::PermanentRedirect,
    ];
    assert_eq!(codes.map(|it| it.code().as_u16()), [301, 302, 303, 307, 308]);
}

#[test]
fn cross_origin_requests_are_answered() {
    let cors = Cors {
        origins: vec![
            OriginMatch::Exact("https://shop.example".into()),
            OriginMatch::Below { scheme: "https://".into(), domain: ".shop.example".into() },
        ],
        credentials: true,
        methods: vec!["GET".into(), "PUT".into()],
        headers: vec!["*".into()],
        exposed: vec![HeaderName::from_static("x-page")],
        max_age: 5,
    };
    let response = |origin: &str| {
        CorsAnswer::Response(headers(&[
            ("access-control-allow-origin", origin),
            ("vary", "Origin"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "x-page"),
        ]))
    };
    let preflight = CorsAnswer::Preflight(headers(&[
        ("access-control-allow-origin", "https://shop.example"),
        ("vary", "Origin"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "GET, PUT"),
        ("access-control-allow-headers", "x-a, x-b"),
        ("access-control-max-age", "5"),
    ]));
    let asks = ("access-control-request-method", "PUT");
    let rows: [(&str, Method, &[(&'static str, &str)], CorsAnswer); 9] = [
        ("no origin", Method::GET, &[], CorsAnswer::Nothing),
        ("permitted", Method::GET, &[("origin", "https://shop.example")], response("https://shop.example")),
        (
            "below",
            Method::GET,
            &[("origin", "https://a.b.shop.example")],
            response("https://a.b.shop.example"),
        ),
        ("nothing below", Method::GET, &[("origin", "https://.shop.example")], CorsAnswer::Nothing),
        (
            "not below, though it ends so",
            Method::GET,
            &[("origin", "https://evil.example/.shop.example")],
            CorsAnswer::Nothing,
        ),
        ("another scheme", Method::GET, &[("origin", "http://shop.example")], CorsAnswer::Nothing),
        (
            "preflight",
            Method::OPTIONS,
            &[("origin", "https://shop.example"), asks, ("access-control-request-headers", "x-a, x-b")],
            preflight,
        ),
        (
            "refused preflight",
            Method::OPTIONS,
            &[("origin", "https://evil.example"), asks],
            CorsAnswer::Preflight(HeaderMap::new()),
        ),
        (
            "an OPTIONS that asks nothing",
            Method::OPTIONS,
            &[("origin", "https://shop.example")],
            response("https://shop.example"),
        ),
    ];
    for (name, method, lines, expected) in rows {
        assert_eq!(cors.answer(&method, &headers(lines)), expected, "{name}");
    }
}

#[test]
fn pauses_between_tries_double() {
    let retry =
        Retry { attempts: 9, codes: vec![StatusCode::BAD_GATEWAY], backoff: Duration::from_millis(100) };
    let rows = [(1, 100), (2, 200), (3, 400), (10, 51_200), (11, 60_000), (64, 60_000), (u32::MAX, 60_000)];
    for (number, milliseconds) in rows {
        assert_eq!(retry.pause(number), Duration::from_millis(milliseconds), "{number}");
    }
    assert!(retry.wants(StatusCode::BAD_GATEWAY));
    assert!(!retry.wants(StatusCode::INTERNAL_SERVER_ERROR));
}

#[test]
fn paths_have_one_form() {
    for (name, path, expected) in [
        ("plain", "/a/b", "/a/b"),
        ("a trailing slash", "/a/", "/a/"),
        ("doubled slashes are another path", "//a//b", "//a//b"),
        ("a dot", "/a/./b", "/a/b"),
        ("two dots", "/a/../b", "/b"),
        ("two dots at the end", "/a/b/..", "/a/"),
        ("above the root", "/../../a", "/a"),
        ("escaped dots", "/a/%2e%2E/b", "/b"),
        ("an escaped letter", "/%61dmin", "/admin"),
        ("an escaped slash stays", "/a%2fb", "/a%2Fb"),
        ("an escaped percent stays", "/a%2561", "/a%2561"),
        ("backslashes", "/a\\..\\b", "/b"),
        ("no escape", "/a%zz%", "/a%zz%"),
        ("hidden files are no dot segments", "/.well-known/x", "/.well-known/x"),
        ("not UTF-8 when decoded", "/%ff", "/%FF"),
        ("the root", "/", "/"),
    ] {
        assert_eq!(normalized(path), expected, "{name}");
        assert_eq!(normalized(&normalized(path)), expected, "{name}, twice");
    }
    assert!(matches!(normalized("/a/b.c"), std::borrow::Cow::Borrowed(_)), "nothing is copied in vain");
}
