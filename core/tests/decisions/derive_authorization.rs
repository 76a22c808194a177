//! AuthorizationPolicy objects → what is enforced.

use ambit_core::derive::{
    AuthorizationPolicy, Kind, MtlsMode, Object, ObjectEvent, Operation, PolicyAction, PolicyRule, Source,
    TargetRef, When,
};
use ambit_core::mesh::Change;
use ambit_core::model::Scope;

use crate::build::policy_key;
use crate::objects::{Lab, ask, authorization, key, metadata, peer, pod, put, said, shop};

use PolicyAction::{Allow, Audit, Custom, Deny, Unreadable};

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn from(sources: Vec<Source>) -> PolicyRule {
    PolicyRule { from: sources, ..PolicyRule::default() }
}

fn to(operations: Vec<Operation>) -> PolicyRule {
    PolicyRule { to: operations, ..PolicyRule::default() }
}

fn when(key: &str, values: &[&str], not_values: &[&str]) -> PolicyRule {
    let when = When { key: key.into(), values: texts(values), not_values: texts(not_values) };
    PolicyRule { when: vec![when], ..PolicyRule::default() }
}

fn namespaces(values: &[&str]) -> Source {
    Source { namespaces: texts(values), ..Source::default() }
}

/// Rules as users write them, asked as `shop/web` at port 8080 of `shop/cart`.
#[test]
fn authorization_rules_are_derived() {
    let any = PolicyRule::default;
    let get = || Operation { methods: texts(&["GET"]), ..Operation::default() };
    let port = |ports: &[u16]| Operation { ports: ports.to_vec(), ..Operation::default() };
    let get_on = |ports: &[u16]| Operation { ports: ports.to_vec(), ..get() };
    let jwt = || Source { request_principals: texts(&["*"]), ..Source::default() };
    let remote =
        || Source { remote_ip_blocks: vec!["10.0.0.0/8".parse().expect("a block")], ..Source::default() };
    let blocks = |yes: &[&str], no: &[&str]| Source {
        ip_blocks: yes.iter().map(|b| b.parse().expect("a block")).collect(),
        not_ip_blocks: no.iter().map(|b| b.parse().expect("a block")).collect(),
        ..Source::default()
    };
    // Name, rules, whether an ALLOW policy of them permits, whether a DENY policy of them denies.
    let rows: Vec<(&str, Vec<PolicyRule>, bool, bool)> = vec![
        ("no rules", vec![], false, false),
        ("an empty rule", vec![any()], true, true),
        (
            "a principal",
            vec![from(vec![Source {
                principals: texts(&["cluster.local/ns/shop/sa/web"]),
                ..Source::default()
            }])],
            true,
            true,
        ),
        (
            "a principal's prefix",
            vec![from(vec![Source { principals: texts(&["cluster.local/ns/shop/*"]), ..Source::default() }])],
            true,
            true,
        ),
        (
            "a principal's suffix",
            vec![from(vec![Source { principals: texts(&["*/sa/web"]), ..Source::default() }])],
            true,
            true,
        ),
        (
            "any principal",
            vec![from(vec![Source { principals: texts(&["*"]), ..Source::default() }])],
            true,
            true,
        ),
        (
            "not a principal",
            vec![from(vec![Source { not_principals: texts(&["*/sa/web"]), ..Source::default() }])],
            false,
            false,
        ),
        ("a namespace", vec![from(vec![namespaces(&["shop"])])], true, true),
        ("another namespace", vec![from(vec![namespaces(&["blog"])])], false, false),
        (
            "not a namespace",
            vec![from(vec![Source { not_namespaces: texts(&["blog"]), ..Source::default() }])],
            true,
            true,
        ),
        (
            "an account of the policy's namespace",
            vec![from(vec![Source { service_accounts: texts(&["web"]), ..Source::default() }])],
            true,
            true,
        ),
        (
            "an account with its namespace",
            vec![from(vec![Source { service_accounts: texts(&["shop/web"]), ..Source::default() }])],
            true,
            true,
        ),
        (
            "an account of another namespace",
            vec![from(vec![Source { service_accounts: texts(&["blog/web"]), ..Source::default() }])],
            false,
            false,
        ),
        (
            "not an account",
            vec![from(vec![Source { not_service_accounts: texts(&["web"]), ..Source::default() }])],
            false,
            false,
        ),
        ("a block", vec![from(vec![blocks(&["10.1.0.0/16"], &[])])], true, true),
        ("a block with a hole", vec![from(vec![blocks(&["10.1.0.0/16"], &["10.1.0.7"])])], false, false),
        ("sources are OR-ed", vec![from(vec![namespaces(&["blog"]), namespaces(&["shop"])])], true, true),
        ("a port", vec![to(vec![port(&[8080])])], true, true),
        ("another port", vec![to(vec![port(&[80])])], false, false),
        (
            "not a port",
            vec![to(vec![Operation { not_ports: vec![8080], ..Operation::default() }])],
            false,
            false,
        ),
        (
            "source and port are AND-ed",
            vec![PolicyRule { to: vec![port(&[80])], ..from(vec![namespaces(&["shop"])]) }],
            false,
            false,
        ),
        ("when: namespace", vec![when("source.namespace", &["shop"], &[])], true, true),
        ("when: not namespace", vec![when("source.namespace", &[], &["shop"])], false, false),
        ("when: principal", vec![when("source.principal", &["*/sa/web"], &[])], true, true),
        ("when: account", vec![when("source.serviceAccount", &["web"], &[])], true, true),
        ("when: source address", vec![when("source.ip", &["10.1.0.0/16"], &["10.1.0.9"])], true, true),
        ("when: destination address", vec![when("destination.ip", &["10.1.0.1"], &[])], true, true),
        ("when: destination port", vec![when("destination.port", &["8080"], &[])], true, true),
        ("when: another destination port", vec![when("destination.port", &["80"], &[])], false, false),
        (
            "when is AND-ed",
            vec![PolicyRule {
                when: vec![
                    When { key: "source.namespace".into(), values: texts(&["shop"]), not_values: vec![] },
                    When { key: "destination.port".into(), values: texts(&["80"]), not_values: vec![] },
                ],
                ..any()
            }],
            false,
            false,
        ),
        // HTTP fields: never allowed by, always denied by.
        ("a method", vec![to(vec![get()])], false, true),
        ("a method on the port", vec![to(vec![get_on(&[8080])])], false, true),
        ("a method on another port: the port still counts", vec![to(vec![get_on(&[80])])], false, false),
        ("a method, or another port", vec![to(vec![get(), port(&[80])])], false, true),
        (
            "a method from another namespace",
            vec![PolicyRule { from: vec![namespaces(&["blog"])], ..to(vec![get()]) }],
            false,
            false,
        ),
        (
            "a path that is excluded",
            vec![to(vec![Operation { not_paths: texts(&["/health"]), ..Operation::default() }])],
            false,
            true,
        ),
        (
            "a host",
            vec![to(vec![Operation { hosts: texts(&["shop.example"]), ..Operation::default() }])],
            false,
            true,
        ),
        ("a token", vec![from(vec![jwt()])], false, true),
        ("a token, or another namespace", vec![from(vec![jwt(), namespaces(&["blog"])])], false, true),
        (
            "a token and another namespace",
            vec![from(vec![Source { namespaces: texts(&["blog"]), ..jwt() }])],
            false,
            false,
        ),
        ("a remote address", vec![from(vec![remote()])], false, true),
        ("when: a header", vec![when("request.headers[x-env]", &["prod"], &[])], false, true),
        ("when: a claim", vec![when("request.auth.claims[iss]", &["me"], &[])], false, true),
        ("when: SNI", vec![when("connection.sni", &["shop.example"], &[])], false, true),
        (
            "when: a header, from another namespace",
            vec![PolicyRule { from: vec![namespaces(&["blog"])], ..when("request.headers[x]", &["y"], &[]) }],
            false,
            false,
        ),
        (
            "an HTTP rule beside one that is none",
            vec![to(vec![get()]), from(vec![namespaces(&["shop"])])],
            true,
            true,
        ),
    ];
    for (name, rules, permits, denies) in rows {
        for (action, expected) in [
            (Allow, if permits { "permitted" } else { "policy_not_allowed" }),
            (Deny, if denies { "policy_denied" } else { "permitted" }),
        ] {
            let mut objects = shop();
            objects.push(Object::AuthorizationPolicy(authorization("shop/p", &[], action, rules.clone())));
            assert_eq!(
                ask(&Lab::new(objects), "shop/web", "shop/cart", 8080),
                expected,
                "{name}, {action:?}"
            );
        }
    }
}

#[test]
fn scopes_of_authorization_policies() {
    let deny = |name: &str, selector: &[(&str, &str)]| {
        Object::AuthorizationPolicy(authorization(name, selector, Deny, vec![PolicyRule::default()]))
    };
    let rows: [(&str, &str, &[(&str, &str)], Scope, [bool; 3]); 5] = [
        ("its namespace", "shop/p", &[], Scope::Namespace, [true, true, false]),
        ("those it selects", "shop/p", &[("app", "cart")], Scope::WorkloadSelector, [true, false, false]),
        ("no workload it selects", "shop/p", &[("app", "x")], Scope::WorkloadSelector, [false, false, false]),
        ("the mesh", "ambit-system/p", &[], Scope::Global, [true, true, true]),
        (
            "those it selects, mesh-wide",
            "ambit-system/p",
            &[("app", "cart")],
            Scope::WorkloadSelector,
            [true, false, true],
        ),
    ];
    for (name, policy, selector, scope, expected) in rows {
        let mut objects = shop();
        objects.push(deny(policy, selector));
        let mut lab = Lab::new(objects);
        let denied = |lab: &Lab| {
            ["shop/cart", "shop/api", "blog/cms"].map(|pod| ask(lab, "x/y", pod, 80) == "policy_denied")
        };
        assert_eq!(lab.mesh.policy(&policy_key(policy)).expect("there").scope, scope, "{name}");
        assert_eq!(denied(&lab), expected, "{name}");
        lab.delete(Kind::AuthorizationPolicy, policy);
        assert_eq!(denied(&lab), [false; 3], "{name}: and afterwards");
    }
}

#[test]
fn dry_run_is_an_annotation() {
    for (value, dry_run) in [("true", true), ("false", false), ("yes", false)] {
        let mut policy = authorization("shop/p", &[], Deny, vec![PolicyRule::default()]);
        policy.metadata.annotations.insert("istio.io/dry-run".into(), value.into());
        let lab = Lab::new([Object::AuthorizationPolicy(policy)]);
        assert_eq!(lab.mesh.policy(&policy_key("shop/p")).expect("there").dry_run, dry_run, "{value}");
    }
}

#[test]
fn conditions_of_authorization_policies() {
    let policy = |rules| authorization("shop/p", &[], Allow, rules);
    let method = Operation { methods: texts(&["GET"]), not_paths: texts(&["/x"]), ..Operation::default() };
    let accounts = |value: &str| Source { service_accounts: texts(&[value]), ..Source::default() };
    let target = TargetRef { kind: "Service".into(), name: "cart".into(), ..TargetRef::default() };
    let rows: Vec<(&str, AuthorizationPolicy, bool, Vec<&str>)> = vec![
        ("all is well", policy(vec![from(vec![namespaces(&["shop"])])]), true, vec![]),
        (
            "HTTP fields",
            policy(vec![PolicyRule::default(), to(vec![method])]),
            true,
            vec!["spec.rules[1].to[0].operation.methods", "spec.rules[1].to[0].operation.notPaths"],
        ),
        (
            "an HTTP condition",
            policy(vec![when("request.headers[x]", &["y"], &[])]),
            true,
            vec!["spec.rules[0].when[0].key"],
        ),
        (
            "targetRefs",
            AuthorizationPolicy { target_refs: vec![target], ..policy(vec![]) },
            false,
            vec!["spec.targetRefs"],
        ),
        ("CUSTOM", AuthorizationPolicy { action: Custom, ..policy(vec![]) }, false, vec!["spec.action"]),
        ("AUDIT", AuthorizationPolicy { action: Audit, ..policy(vec![]) }, false, vec!["spec.action"]),
        (
            "a source without conditions",
            policy(vec![from(vec![Source::default()])]),
            false,
            vec!["spec.rules[0].from[0].source"],
        ),
        (
            "an operation without conditions",
            policy(vec![to(vec![Operation::default()])]),
            false,
            vec!["spec.rules[0].to[0].operation"],
        ),
        (
            "a condition without values",
            policy(vec![when("source.ip", &[], &[])]),
            false,
            vec!["spec.rules[0].when[0]"],
        ),
        (
            "an unknown attribute",
            policy(vec![when("source.colour", &["red"], &[])]),
            false,
            vec!["spec.rules[0].when[0].key"],
        ),
        (
            "a bad block",
            policy(vec![when("source.ip", &["10.0.0.0/8", "10.0.0/33"], &[])]),
            false,
            vec!["spec.rules[0].when[0].values[1]"],
        ),
        (
            "a bad port",
            policy(vec![when("destination.port", &[], &["0"])]),
            false,
            vec!["spec.rules[0].when[0].notValues[0]"],
        ),
        (
            "an empty text",
            policy(vec![from(vec![namespaces(&["shop", ""])])]),
            false,
            vec!["spec.rules[0].from[0].source.namespaces[1]"],
        ),
        (
            "an account with a star",
            policy(vec![from(vec![accounts("shop/*")])]),
            false,
            vec!["spec.rules[0].from[0].source.serviceAccounts[0]"],
        ),
        (
            "an account with two slashes",
            policy(vec![from(vec![accounts("a/b/c")])]),
            false,
            vec!["spec.rules[0].from[0].source.serviceAccounts[0]"],
        ),
    ];
    for (name, policy, accepted, fields) in rows {
        let mut lab = Lab::new([]);
        let (derived, _) = lab.put([Object::AuthorizationPolicy(policy)]);
        let expected: Vec<_> = if fields.is_empty() {
            vec![(accepted, None)]
        } else {
            fields.iter().map(|field| (accepted, Some((*field).to_owned()))).collect()
        };
        assert_eq!(said(&lab, Kind::AuthorizationPolicy, "shop/p"), expected, "{name}");
        assert_eq!(derived.conditions.len(), expected.len(), "{name}: reported at once");
        let enforced = !matches!(name, "targetRefs" | "AUDIT");
        assert_eq!(lab.mesh.policies().count(), usize::from(enforced), "{name}: in force, or closed");
    }
}

/// Whatever was there before, so that a controller that has just started decides as the others do.
#[test]
fn a_policy_that_cannot_be_enforced_refuses_all_that_it_selects() {
    let bad_rule = || vec![when("source.colour", &["red"], &[])];
    let colour = "spec.rules[0].when[0].key";
    let policy = |name: &str, selector: &[(&str, &str)], action, rules| {
        Object::AuthorizationPolicy(authorization(name, selector, action, rules))
    };
    let waypoints = || {
        let target = TargetRef { kind: "Service".into(), name: "cart".into(), ..TargetRef::default() };
        let policy = authorization("shop/p", &[], Unreadable, vec![]);
        Object::AuthorizationPolicy(AuthorizationPolicy { target_refs: vec![target], ..policy })
    };
    let dry = || {
        let mut policy = authorization("shop/p", &[], Unreadable, vec![]);
        policy.metadata.annotations.insert("istio.io/dry-run".into(), "true".into());
        Object::AuthorizationPolicy(policy)
    };
    let cart = [("app", "cart")];
    let rows: Vec<(&str, Object, &str, [bool; 3])> = vec![
        ("in its namespace", policy("shop/p", &[], Unreadable, vec![]), "spec", [true, true, false]),
        ("of workloads", policy("shop/p", &cart, Unreadable, vec![]), "spec", [true, false, false]),
        ("in the mesh", policy("ambit-system/p", &[], Unreadable, vec![]), "spec", [true, true, true]),
        ("a rule with a mistake", policy("shop/p", &cart, Allow, bad_rule()), colour, [true, false, false]),
        ("CUSTOM", policy("shop/p", &cart, Custom, vec![]), "spec.action", [true, false, false]),
        ("AUDIT decides nothing", policy("shop/p", &cart, Audit, vec![]), "spec.action", [false; 3]),
        ("for waypoints", waypoints(), "spec.targetRefs", [false; 3]),
        ("a dry run", dry(), "spec", [false; 3]),
    ];
    let refuses = |lab: &Lab| {
        ["shop/cart", "shop/api", "blog/cms"].map(|pod| ask(lab, "shop/web", pod, 80) == "policy_denied")
    };
    for (name, object, field, expected) in rows {
        let key = object.key();
        let path = format!("{}/{}", key.namespace, key.name);
        let said = |lab: &Lab| said(lab, Kind::AuthorizationPolicy, &path);
        let good = policy(&path, &cart, Allow, vec![from(vec![namespaces(&["shop"])])]);
        for before in [None, Some(good.clone())] {
            let mut lab = Lab::new(shop().into_iter().chain(before));
            assert_eq!(refuses(&lab), [false; 3], "{name}");
            lab.put([object.clone()]);
            assert_eq!(refuses(&lab), expected, "{name}");
            assert_eq!(said(&lab), [(false, Some(field.to_owned()))], "{name}");
            lab.put([good.clone()]);
            assert_eq!(refuses(&lab), [false; 3], "{name}: mended");
            assert_eq!(said(&lab), [(true, None)], "{name}: mended");
            lab.put([object.clone()]);
            lab.delete(Kind::AuthorizationPolicy, &path);
            assert_eq!(refuses(&lab), [false; 3], "{name}: deleted");
            assert!(said(&lab).is_empty(), "{name}: deleted");
        }
    }
}

#[test]
fn values_that_never_match_are_mistakes() {
    let principals = |value: &str| Source { principals: texts(&[value]), ..Source::default() };
    let rows = [
        ("cluster.local/ns/shop/sa/web", true, "principals"),
        ("*", true, "principals"),
        ("*/sa/web", true, "principals"),
        ("cluster.local/ns/shop/*", true, "principals"),
        ("spiffe://cluster.local/ns/shop/sa/web", false, "principals"),
        ("spiffe://cluster.local/*", false, "principals"),
        ("*/ns/shop/*", false, "principals"),
        ("cluster.local/*/sa/web", false, "principals"),
        ("cluster.local/ns/shop", false, "principals"),
        ("**", false, "principals"),
        ("shop", true, "namespaces"),
        ("shop-*", true, "namespaces"),
        ("*-shop", true, "namespaces"),
        ("*shop*", false, "namespaces"),
        ("Shop", false, "namespaces"),
        ("shop/web", false, "namespaces"),
        ("blog/web", true, "serviceAccounts"),
        ("blog/*", false, "serviceAccounts"),
    ];
    for (value, accepted, field) in rows {
        let source = match field {
            "principals" => principals(value),
            "namespaces" => namespaces(&[value]),
            _ => Source { service_accounts: texts(&[value]), ..Source::default() },
        };
        let lab = Lab::new([Object::AuthorizationPolicy(authorization(
            "shop/p",
            &[],
            Deny,
            vec![from(vec![source])],
        ))]);
        let field = (!accepted).then(|| format!("spec.rules[0].from[0].source.{field}[0]"));
        assert_eq!(said(&lab, Kind::AuthorizationPolicy, "shop/p"), [(accepted, field)], "{value}");
    }
}

#[test]
fn policies_are_put_before_and_removed_after_workloads_that_name_them() {
    let policy = || Object::AuthorizationPolicy(authorization("shop/p", &[("app", "cart")], Deny, vec![]));
    let mut lab = Lab::new(shop());
    let (derived, _) = lab.put([policy()]);
    assert!(
        matches!(derived.changes[..], [Change::PutPolicy(_), Change::PutWorkload(_)]),
        "{:?}",
        derived.changes
    );
    let (derived, _) = lab.delete(Kind::AuthorizationPolicy, "shop/p");
    assert!(
        matches!(derived.changes[..], [Change::PutWorkload(_), Change::RemovePolicy(_)]),
        "{:?}",
        derived.changes
    );
    let gone = [Kind::Pod, Kind::AuthorizationPolicy]
        .map(|kind| ObjectEvent::Delete(key(kind, if kind == Kind::Pod { "shop/cart" } else { "shop/p" })));
    lab.put([policy()]);
    let (derived, _) = lab.apply(gone);
    assert!(
        matches!(derived.changes[..], [Change::RemoveWorkload(_), Change::RemovePolicy(_)]),
        "{:?}",
        derived.changes
    );
}

#[test]
fn policies_apply_to_later_workloads() {
    let mut lab = Lab::new([
        Object::AuthorizationPolicy(authorization(
            "shop/p",
            &[("app", "cart")],
            Deny,
            vec![PolicyRule::default()],
        )),
        Object::PeerAuthentication(peer("ambit-system/default", &[], MtlsMode::Strict, &[], 1)),
    ]);
    lab.apply(shop().into_iter().map(put));
    assert_eq!(ask(&lab, "shop/web", "shop/cart", 80), "policy_denied");
    assert_eq!(ask(&lab, "", "shop/api", 80), "policy_denied");
    let relabelled = ambit_core::derive::Pod {
        metadata: metadata("shop/cart", &[("app", "basket")]),
        ..pod("shop/cart", &[], &["10.1.0.1"])
    };
    lab.put([Object::Pod(relabelled)]);
    assert_eq!(ask(&lab, "shop/web", "shop/cart", 80), "permitted");
}
