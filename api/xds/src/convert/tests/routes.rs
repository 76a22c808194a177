//! Routes survive the wire.

use std::time::Duration;

use ambit_core::route::*;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::{service_key, text};
use crate::convert::{decode_routes, encode_routes};
use crate::proto::ambit::v1 as wire;

fn some() -> impl Strategy<Value = Box<str>> {
    "\\PC{1,8}".prop_map(Into::into)
}

fn header_name() -> impl Strategy<Value = HeaderName> {
    "[a-z][a-z0-9-]{0,8}".prop_map(|text| HeaderName::try_from(text).expect("a name"))
}

fn header_value() -> impl Strategy<Value = HeaderValue> {
    vec(prop_oneof![32_u8..127, 128_u8..], 0..8).prop_map(|it| HeaderValue::from_bytes(&it).expect("a value"))
}

fn pattern() -> impl Strategy<Value = Pattern> {
    "/[a-z]{1,4}(\\.\\*)?".prop_map(|text| Pattern::new(&text).expect("an expression"))
}

fn value() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![some().prop_map(ValueMatch::Exact), pattern().prop_map(ValueMatch::Pattern)]
}

fn one_match() -> impl Strategy<Value = Match> {
    let path = prop_oneof![
        some().prop_map(PathMatch::Exact),
        some().prop_map(PathMatch::Prefix),
        pattern().prop_map(PathMatch::Pattern),
    ];
    let method =
        option::of("[A-Z]{3,7}".prop_map(|text| Method::from_bytes(text.as_bytes()).expect("a method")));
    let headers = vec((header_name(), value()).prop_map(|(name, value)| HeaderMatch { name, value }), 0..3);
    let query = vec((some(), value()).prop_map(|(name, value)| QueryMatch { name, value }), 0..3);
    (path, method, headers, query).prop_map(|(path, method, headers, query)| Match {
        path,
        method,
        headers,
        query,
    })
}

fn change() -> impl Strategy<Value = HeaderChange> {
    let pairs = || vec((header_name(), header_value()), 0..3);
    (pairs(), pairs(), vec(header_name(), 0..3)).prop_map(|(set, add, remove)| HeaderChange {
        set,
        add,
        remove,
    })
}

fn path_rewrite() -> impl Strategy<Value = PathRewrite> {
    prop_oneof![some().prop_map(PathRewrite::Full), some().prop_map(PathRewrite::Prefix)]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        (service_key(), any::<u16>()).prop_map(|(service, port)| Target::Service { service, port }),
        text().prop_map(|reason| Target::Invalid { reason }),
    ]
}

fn cors() -> impl Strategy<Value = Cors> {
    let origin = prop_oneof![
        Just(OriginMatch::Any),
        some().prop_map(OriginMatch::Exact),
        (some(), some()).prop_map(|(scheme, domain)| OriginMatch::Below { scheme, domain }),
    ];
    let lists = (vec(origin, 0..3), vec(some(), 0..3), vec(some(), 0..3), vec(header_name(), 0..3));
    (lists, any::<bool>(), any::<u32>()).prop_map(
        |((origins, methods, headers, exposed), credentials, max_age)| Cors {
            origins,
            credentials,
            methods,
            headers,
            exposed,
            max_age,
        },
    )
}

fn redirect() -> impl Strategy<Value = Redirect> {
    let status = prop_oneof![
        Just(RedirectStatus::MovedPermanently),
        Just(RedirectStatus::Found),
        Just(RedirectStatus::SeeOther),
        Just(RedirectStatus::TemporaryRedirect),
        Just(RedirectStatus::PermanentRedirect),
    ];
    let scheme = option::of(prop_oneof![Just(Scheme::Http), Just(Scheme::Https)]);
    (scheme, option::of(some()), option::of(path_rewrite()), option::of(any::<u16>()), status)
        .prop_map(|(scheme, hostname, path, port, status)| Redirect { scheme, hostname, path, port, status })
}

fn filter() -> impl Strategy<Value = Filter> {
    prop_oneof![
        change().prop_map(Filter::RequestHeaders),
        change().prop_map(Filter::ResponseHeaders),
        redirect().prop_map(Filter::Redirect),
        (option::of(some()), option::of(path_rewrite()))
            .prop_map(|(hostname, path)| Filter::Rewrite(Rewrite { hostname, path })),
        (target(), any::<u32>(), 1_u32..).prop_map(|(target, numerator, denominator)| {
            Filter::Mirror(Mirror { target, numerator, denominator })
        }),
        cors().prop_map(Filter::Cors),
    ]
}

fn time() -> impl Strategy<Value = Duration> {
    (0_u64..1_000_000, 0_u32..1_000_000_000).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn one_rule() -> impl Strategy<Value = Rule> {
    let backend = (target(), any::<u32>(), vec(change(), 0..2), vec(change(), 0..2)).prop_map(
        |(target, weight, request_headers, response_headers)| Backend {
            target,
            weight,
            request_headers,
            response_headers,
        },
    );
    let code = (100_u16..1000).prop_map(|code| StatusCode::from_u16(code).expect("a status"));
    let retry = (any::<u32>(), vec(code, 0..3), time()).prop_map(|(attempts, codes, backoff)| Retry {
        attempts,
        codes,
        backoff,
    });
    let timeouts = (option::of(time()), option::of(time()))
        .prop_map(|(request, backend_request)| Timeouts { request, backend_request });
    let lists = (vec(one_match(), 0..3), vec(filter(), 0..4), vec(backend, 0..3));
    (option::of(text()), lists, timeouts, option::of(retry)).prop_map(
        |(name, (matches, filters, backends), timeouts, retry)| Rule {
            name,
            matches,
            filters,
            backends: Backends::new(backends),
            timeouts,
            retry,
        },
    )
}

fn one_route() -> impl Strategy<Value = Route> {
    let kind = select(vec![RouteKind::Http, RouteKind::Grpc, RouteKind::Tls, RouteKind::Tcp]);
    let server_name = select(vec!["a.example.com", "*.example.com", "com"]);
    let server_name = server_name.prop_map(|name| ServerNameMatch::parse(name).expect("a server name"));
    let server_names = vec(server_name, 0..3);
    (kind, text(), text(), any::<i64>(), server_names, vec(one_rule(), 0..3)).prop_map(
        |(kind, namespace, name, created, server_names, rules)| Route {
            key: RouteKey { kind, namespace, name },
            created,
            server_names,
            rules,
        },
    )
}

fn routes() -> impl Strategy<Value = ServiceRoutes> {
    let attachments = vec((any::<prop::sample::Index>(), option::of(any::<u16>()), option::of(text())), 0..5);
    (service_key(), vec(one_route().prop_map(std::sync::Arc::new), 1..3), attachments).prop_map(
        |(service, routes, attachments)| {
            let attached = attachments.into_iter().map(|(index, port, consumer)| Attached {
                route: index.get(&routes).clone(),
                port,
                consumer,
            });
            ServiceRoutes::new(service, attached.collect())
        },
    )
}

proptest! {
    #[test]
    fn routes_round_trip(routes in routes()) {
        let encoded = encode_routes(&routes);
        prop_assert_eq!(&decode_routes(&encoded).expect("what was encoded"), &routes);
        let same = ServiceRoutes::new(routes.service().clone(), routes.attached().to_vec());
        prop_assert_eq!(encode_routes(&same), encoded, "equal routes have one encoding, and so one version");
    }
}

/// Makes a mistake in good routes.
type Break = fn(&mut wire::ServiceRoutes);

#[test]
fn what_is_not_known_is_refused_by_field() {
    let rows: [(&str, Break, &str); 7] = [
        ("no service", |it| it.hostname.clear(), "hostname"),
        ("no such route", |it| it.attachments[0].route = 9, "attachments[0].route"),
        (
            "a path of no kind",
            |it| it.routes[0].rules[0].matches[0].path = None,
            "routes[0].rules[0].matches[0].path",
        ),
        (
            "a filter of no kind",
            |it| it.routes[0].rules[0].filters[0].filter = None,
            "routes[0].rules[0].filters[0]",
        ),
        (
            "no method",
            |it| it.routes[0].rules[0].matches[0].method = Some("G T".into()),
            "routes[0].rules[0].matches[0].method",
        ),
        (
            "a server name",
            |it| it.routes[0].server_names = vec!["a.com".into(), "*".into()],
            "routes[0].server_names[1]",
        ),
        ("a kind of route", |it| it.routes[0].kind = 7, "routes[0].kind"),
    ];
    for (row, break_it, field) in rows {
        let rule = wire::RouteRule {
            matches: vec![wire::RouteMatch {
                path: Some(wire::route_match::Path::Prefix("/".into())),
                ..Default::default()
            }],
            filters: vec![wire::RouteFilter {
                filter: Some(wire::route_filter::Filter::RequestHeaders(wire::HeaderChange::default())),
            }],
            ..Default::default()
        };
        let route = wire::Route {
            namespace: "shop".into(),
            name: "r".into(),
            rules: vec![rule],
            ..Default::default()
        };
        let mut routes = wire::ServiceRoutes {
            namespace: "shop".into(),
            hostname: "cart.shop".into(),
            routes: vec![route],
            attachments: vec![wire::Attachment::default()],
        };
        decode_routes(&routes).expect("it is good as it is");
        break_it(&mut routes);
        assert_eq!(decode_routes(&routes).expect_err(row).field, field, "{row}");
    }
}
