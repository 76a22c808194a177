//! Routes and Gateways: what is read, and what becomes of mistakes.

use ambit_core::derive::{
    AllowedNamespaces, LabelRequirement, LabelValue, Object, RouteFilter, RouteObject, RuleEffect,
};
use ambit_core::route::{Filter, Match, PathMatch, PathRewrite, RedirectStatus, RouteKind};

use crate::{Document, Outcome, parse};

fn object(text: &str) -> Object {
    match parse(text).remove(0).outcome {
        Outcome::Accepted { object, .. } => *object,
        other => panic!("{text}: {other:?}"),
    }
}

fn route(kind: &str, rules: &str) -> RouteObject {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: cart, port: 80}}], rules: {rules}}}"
    );
    match object(&text) {
        Object::Route(route) => *route,
        other => panic!("{other:?}"),
    }
}

fn http(rule: &str) -> RouteObject {
    route("HTTPRoute", &format!("[{rule}]"))
}

#[test]
fn a_route_as_it_is_written() {
    let route = http(
        "{name: one, matches: [{path: {type: Exact, value: /a}, method: GET, headers: [{name: X-Env, value: \
         test}]}], filters: [{type: RequestRedirect, requestRedirect: {hostname: example.com, statusCode: \
         308, path: {type: ReplaceFullPath, replaceFullPath: /b}}}], timeouts: {request: 10s, \
         backendRequest: 500ms}, retry: {attempts: 3, codes: [503], backoff: 100ms}, backendRefs: [{name: \
         cart-v2, port: 80, weight: 9}]}",
    );
    assert_eq!((route.kind, route.parents[0].port), (RouteKind::Http, Some(80)));
    let rule = &route.rules[0];
    assert_eq!(rule.mistakes, []);
    assert_eq!(rule.matches[0].path, PathMatch::Exact("/a".into()));
    assert_eq!(rule.matches[0].headers[0].name, "x-env");
    let RouteFilter::Ready(Filter::Redirect(redirect)) = &rule.filters[0] else { panic!("a redirect") };
    assert_eq!(redirect.status, RedirectStatus::PermanentRedirect);
    assert_eq!(redirect.path, Some(PathRewrite::Full("/b".into())));
    assert_eq!(rule.timeouts.request.map(|it| it.as_secs()), Some(10));
    assert_eq!(rule.retry.as_ref().map(|it| (it.attempts, it.codes.len())), Some((3, 1)));
    assert_eq!((rule.backends[0].weight, rule.backends[0].target.port), (9, Some(80)));
    assert_eq!(rule.backends[0].target.field, "spec.rules[0].backendRefs[0]");
}

#[test]
fn a_route_without_rules_matches_everything() {
    for rules in ["[]", "null", "[{}]"] {
        for kind in ["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"] {
            let route = route(kind, rules);
            assert_eq!(route.rules.len(), 1, "{kind} {rules}");
            assert_eq!(route.rules[0].matches, [Match::any()], "{kind} {rules}");
        }
    }
}

#[test]
fn grpc_methods_are_paths() {
    let rows = [
        ("{method: {service: shop.Cart, method: Add}}", PathMatch::Exact("/shop.Cart/Add".into())),
        ("{method: {service: shop.Cart}}", PathMatch::Prefix("/shop.Cart".into())),
        ("{headers: [{name: x, value: y}]}", PathMatch::Prefix("/".into())),
    ];
    for (text, expected) in rows {
        let route = route("GRPCRoute", &format!("[{{matches: [{text}]}}]"));
        assert_eq!(route.rules[0].matches[0].path, expected, "{text}");
    }
}

#[test]
fn mistakes_are_their_rules() {
    use RuleEffect::{Dropped, Fails, Incompatible};
    let rewrite =
        "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}";
    let exact = format!("{{matches: [{{path: {{type: Exact, value: /a}}}}], filters: [{rewrite}]}}");
    let both = format!("{{filters: [{rewrite}, {{type: RequestRedirect, requestRedirect: {{}}}}]}}");
    let twice = format!("{{filters: [{rewrite}, {rewrite}]}}");
    let rows = [
        (
            "an expression that is none",
            "{matches: [{path: {type: RegularExpression, value: '('}}]}",
            "matches[0].path.value",
            Dropped,
        ),
        ("a kind of path", "{matches: [{path: {type: Glob, value: /a}}]}", "matches[0].path.type", Dropped),
        ("a relative path", "{matches: [{path: {value: a}}]}", "matches[0].path.value", Dropped),
        ("a path with dots", "{matches: [{path: {value: /a/../b}}]}", "matches[0].path.value", Dropped),
        (
            "a header's name",
            "{matches: [{headers: [{name: 'a b', value: c}]}]}",
            "matches[0].headers[0].name",
            Dropped,
        ),
        ("a prefix replaced where none matched", &exact, "filters", Dropped),
        ("filters that exclude each other", &both, "filters", Incompatible),
        ("a filter twice", &twice, "filters[1]", Incompatible),
        (
            "a filter that is not known",
            "{filters: [{type: ExternalAuth, externalAuth: {}}]}",
            "filters[0].type",
            Fails,
        ),
        (
            "an extension",
            "{filters: [{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}]}",
            "filters[0].type",
            Fails,
        ),
        ("a filter without its field", "{filters: [{type: CORS}]}", "filters[0]", Fails),
        (
            "a host set as a header",
            "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: \
             a}]}}]}",
            "filters[0]",
            Fails,
        ),
        (
            "a redirect that is none",
            "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]}",
            "filters[0].requestRedirect.statusCode",
            Fails,
        ),
        (
            "a share above the whole",
            "{filters: [{type: RequestMirror, requestMirror: {percent: 101, backendRef: {name: a, port: \
             80}}}]}",
            "filters[0].requestMirror",
            Fails,
        ),
        ("a duration of other units", "{timeouts: {request: 1d}}", "timeouts.request", Dropped),
        (
            "a part longer than the whole",
            "{timeouts: {request: 1s, backendRequest: 2s}}",
            "timeouts.backendRequest",
            Dropped,
        ),
        ("a code", "{retry: {codes: [200]}}", "retry.codes[0]", Dropped),
        ("sessions", "{sessionPersistence: {type: Cookie}}", "sessionPersistence", Fails),
        (
            "a redirect for one backend",
            "{backendRefs: [{name: a, port: 80, filters: [{type: RequestRedirect, requestRedirect: {}}]}]}",
            "backendRefs[0].filters[0]",
            Fails,
        ),
    ];
    for (row, text, field, effect) in rows {
        let mistakes = http(text).rules.remove(0).mistakes;
        let found: Vec<_> = mistakes.iter().map(|it| (it.field.as_str(), it.effect)).collect();
        assert_eq!(found, [(format!("spec.rules[0].{field}").as_str(), effect)], "{row}");
    }
}

#[test]
fn a_field_that_is_not_known_rejects_a_route() {
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec: \
                {rules: [{matches: [{paths: {value: /a}}]}]}";
    match parse(text).remove(0).outcome {
        Outcome::Rejected { mistakes, .. } => {
            assert_eq!(mistakes[0].field, "spec.rules[0].matches[0].paths");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn gateways_of_any_class_are_read() {
    let text = |class: &str, protocol: &str, status: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: \
             shop}}\nspec: {{gatewayClassName: {class}, listeners: [{{name: mesh, port: 16008, protocol: \
             {protocol}, tls: {{mode: Terminate}}}}], infrastructure: {{labels: {{a: b}}}}}}\n\
             status: {status}"
        )
    };
    let record =
        "{conditions: [{type: ambit.dev/FirstProgrammed, status: 'True', reason: x}], listeners: []}";
    let rows = [
        ("ours", text("ambit-waypoint", "HBONE", "{}"), "ambit-waypoint", Some(16008), false),
        ("with a record", text("ambit-waypoint", "HBONE", record), "ambit-waypoint", Some(16008), true),
        ("another's", text("istio", "HTTPS", "{}"), "istio", None, false),
    ];
    for (row, text, class, port, was_programmed) in rows {
        let Object::Gateway(gateway) = object(&text) else { panic!("{row}") };
        let found = (gateway.class.as_str(), gateway.hbone().map(|it| it.port), gateway.was_programmed);
        assert_eq!(found, (class, port, was_programmed), "{row}");
    }
}

#[test]
fn allowed_routes_of_a_listener() {
    let text = |allowed: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: \
             shop}}\nspec: {{gatewayClassName: ambit-waypoint, listeners: [{{name: mesh, port: 15008, \
             protocol: HBONE, allowedRoutes: {allowed}}}]}}"
        )
    };
    let selected = AllowedNamespaces::Selected(vec![
        LabelRequirement { key: "team".into(), value: LabelValue::In(vec!["web".into()]) },
        LabelRequirement { key: "zone".into(), value: LabelValue::NotIn(vec!["a".into()]) },
        LabelRequirement { key: "x".into(), value: LabelValue::Exists },
        LabelRequirement { key: "y".into(), value: LabelValue::DoesNotExist },
    ]);
    let selector = "{matchLabels: {team: web}, matchExpressions: [{key: zone, operator: NotIn, values: [a]}, \
                    {key: x, operator: Exists}, {key: y, operator: DoesNotExist}]}";
    let rows = [
        ("nothing", "{}".to_owned(), AllowedNamespaces::Same),
        ("no source", "{namespaces: {}}".to_owned(), AllowedNamespaces::Same),
        ("its own", "{namespaces: {from: Same}}".to_owned(), AllowedNamespaces::Same),
        ("all", "{namespaces: {from: All}}".to_owned(), AllowedNamespaces::All),
        ("none", "{namespaces: {from: None}}".to_owned(), AllowedNamespaces::None),
        ("by labels", format!("{{namespaces: {{from: Selector, selector: {selector}}}}}"), selected),
    ];
    for (row, allowed, expected) in rows {
        let Object::Gateway(gateway) = object(&text(&allowed)) else { panic!("{row}") };
        let listener = gateway.hbone().expect("a listener");
        assert_eq!((&listener.namespaces, listener.name.as_str()), (&expected, "mesh"), "{row}");
    }
    let Object::Gateway(gateway) = object(&text("{kinds: [{kind: HTTPRoute}]}")) else { panic!("kinds") };
    assert_eq!(gateway.listeners[0].kinds, ["HTTPRoute"]);
    let at = "spec.listeners[0].allowedRoutes.namespaces";
    let rows = [
        ("{namespaces: {from: Some}}", format!("{at}.from")),
        ("{namespaces: {from: Selector}}", format!("{at}.selector")),
        (
            "{namespaces: {from: Selector, selector: {matchExpressions: [{key: a, operator: Is}]}}}",
            format!("{at}.selector.matchExpressions[0].operator"),
        ),
        (
            "{namespaces: {from: Selector, selector: {matchExpressions: [{key: a, operator: NotIn}]}}}",
            format!("{at}.selector.matchExpressions[0].values"),
        ),
        (
            "{namespaces: {from: Selector, selector: {matchExpressions: [{key: a, operator: Exists, values: \
             [b]}]}}}",
            format!("{at}.selector.matchExpressions[0].values"),
        ),
    ];
    for (allowed, field) in rows {
        let documents = parse(&text(allowed));
        let [Document { outcome: Outcome::Rejected { mistakes, .. }, .. }] = &documents[..] else {
            panic!("{allowed}: {documents:?}");
        };
        assert_eq!(mistakes[0].field, field, "{allowed}");
    }
}

#[test]
fn mistakes_in_listeners_that_a_waypoint_does_not_have_are_overlooked() {
    let text = |first: &str, second: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: \
             shop}}\nspec: {{gatewayClassName: ambit-waypoint, listeners: [{first}, {second}]}}"
        )
    };
    let own = "{name: mesh, port: 15008, protocol: HBONE}";
    let wrong = "{name: web, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Some}}}";
    for (row, text) in [("before it", text(wrong, own)), ("after it", text(own, wrong))] {
        let Object::Gateway(gateway) = object(&text) else { panic!("{row}") };
        assert_eq!(gateway.hbone().map(|it| it.port), Some(15008), "{row}");
        let other = gateway.listeners.iter().find(|it| it.name == "web").expect(row);
        assert_eq!(other.namespaces, AllowedNamespaces::None, "{row}");
    }
}

fn of_connections(kind: &str, version: &str, spec: &str) -> Outcome {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: r, namespace: \
         shop}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: cart}}], {spec}}}"
    );
    parse(&text).remove(0).outcome
}

#[test]
fn routes_of_connections_in_every_version() {
    let rules = "rules: [{name: all, backendRefs: [{name: a, port: 1}, {name: b, port: 2, weight: 0}]}]";
    for (kind, expected, versions) in [
        ("TLSRoute", RouteKind::Tls, &["v1", "v1alpha3", "v1alpha2"][..]),
        ("TCPRoute", RouteKind::Tcp, &["v1", "v1alpha2"]),
    ] {
        for version in versions {
            let Outcome::Accepted { object, .. } = of_connections(kind, version, rules) else {
                panic!("{kind} {version}");
            };
            let Object::Route(route) = *object else { panic!("{kind} {version}") };
            let weights: Vec<u32> = route.rules[0].backends.iter().map(|it| it.weight).collect();
            assert_eq!((route.kind, weights, route.rules.len()), (expected, vec![1, 0], 1), "{version}");
            assert_eq!(route.rules[0].mistakes, [], "{kind} {version}");
        }
    }
}

#[test]
fn mistakes_in_routes_of_connections() {
    let rows = [
        ("TLSRoute", "v1", "hostnames: [a.com, 10.0.0.1]", "spec.hostnames[1]"),
        ("TLSRoute", "v1", "hostnames: ['*.a.*']", "spec.hostnames[0]"),
        ("TLSRoute", "v1", "rules: [{matches: []}]", "spec.rules[0].matches"),
        ("TCPRoute", "v1", "hostnames: [a.com]", "spec.hostnames"),
        ("TCPRoute", "v1alpha3", "rules: []", "apiVersion"),
    ];
    for (kind, version, spec, field) in rows {
        let Outcome::Rejected { mistakes, .. } = of_connections(kind, version, spec) else {
            panic!("{kind} {spec} is accepted");
        };
        assert_eq!(mistakes[0].field, field, "{kind} {spec}: {mistakes:?}");
    }
    let accepted = of_connections("TLSRoute", "v1", "hostnames: ['*.Shop.example', a.com]");
    let Outcome::Accepted { object, .. } = accepted else { panic!("{accepted:?}") };
    let Object::Route(route) = *object else { panic!("a route") };
    let names: Vec<String> = route.server_names.iter().map(ToString::to_string).collect();
    assert_eq!((names, route.hostnames.len()), (vec!["*.shop.example".into(), "a.com".into()], 0));
    let filtered = "rules: [{backendRefs: [{name: a, port: 1, filters: [{type: RequestHeaderModifier, \
                    requestHeaderModifier: {remove: [x]}}]}]}]";
    let Outcome::Accepted { object, .. } = of_connections("TCPRoute", "v1", filtered) else {
        panic!("a mistake of its rule alone");
    };
    let Object::Route(route) = *object else { panic!("a route") };
    assert_eq!(route.rules[0].mistakes[0].effect, RuleEffect::Fails);
}
