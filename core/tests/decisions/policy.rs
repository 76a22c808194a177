//! The rows of [`authorize`]: what the wire's semantics say, one by one.

use ambit_core::model::{Authorization, Rule, Scope};
use ambit_core::policy::{Decision, DryRun, Request, authorize};
use ambit_core::{Denial, Reason};

use crate::build::{With as _, allow, deny, identity, ip, m, mesh, only, pod, policy_key, rule, socket, uid};

/// What a row expects.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// Permitted without any ALLOW policy.
    Free,
    /// Permitted by this policy.
    By(&'static str),
    /// Refused by this DENY policy.
    DeniedBy(&'static str),
    /// Refused because no ALLOW policy matches.
    NotAllowed,
}
use Expect::{By, DeniedBy, Free, NotAllowed};

/// Who asks in a row: identity (`namespace/account`, empty for none), source, and the port asked for.
type From = (&'static str, &'static str, u16);

const WEB: From = ("shop/web", "10.1.0.7", 8080);
const OTHER: From = ("blog/cms", "10.2.0.9", 8080);
const UNAUTHENTICATED: From = ("", "10.1.0.7", 8080);

fn ask(policies: Vec<Authorization>, (who, source, port): From) -> Decision {
    let mut cart = pod("shop/cart", &["10.1.0.1", "fd00::1"]);
    cart.policies =
        policies.iter().filter(|p| p.scope == Scope::WorkloadSelector).map(|p| p.key.clone()).collect();
    let mesh = mesh([cart], [], policies);
    let who = (!who.is_empty()).then(|| identity(who));
    let destination = if ip(source).is_ipv4() { "10.1.0.1" } else { "fd00::1" };
    let peer =
        Request { identity: who.as_ref(), source: ip(source), destination: (ip(destination), port).into() };
    authorize(&mesh, &uid("shop/cart"), &peer)
}

#[track_caller]
fn check(name: &str, policies: Vec<Authorization>, from: From, expect: Expect) {
    let outcome = ask(policies, from).outcome;
    let right = match (&outcome, expect) {
        (Ok(permit), Free) => permit.policy().is_none(),
        (Ok(permit), By(policy)) => permit.policy() == Some(&policy_key(policy)),
        (Err(Denial::PolicyDenied { policy, .. }), DeniedBy(expected)) => *policy == policy_key(expected),
        (Err(Denial::PolicyNotAllowed(_)), NotAllowed) => true,
        _ => false,
    };
    assert!(right, "{name}: expected {expect:?}, got {outcome:?}");
}

fn all() -> Vec<Rule> {
    vec![rule([])]
}

#[test]
fn deny_takes_precedence_over_allow() {
    let rows: Vec<(&str, Vec<Authorization>, From, Expect)> = vec![
        ("no policies permit", vec![], WEB, Free),
        ("no policies permit a peer without identity", vec![], UNAUTHENTICATED, Free),
        ("an ALLOW that matches permits", vec![allow("shop/a", all())], WEB, By("shop/a")),
        ("an ALLOW without rules permits nothing", vec![allow("shop/a", vec![])], WEB, NotAllowed),
        ("a DENY that matches refuses", vec![deny("shop/d", all())], WEB, DeniedBy("shop/d")),
        ("a DENY without rules denies nothing", vec![deny("shop/d", vec![])], WEB, Free),
        (
            "DENY goes before ALLOW",
            vec![allow("shop/a", all()), deny("shop/d", all())],
            WEB,
            DeniedBy("shop/d"),
        ),
        (
            "a DENY that does not match leaves it to ALLOW",
            vec![allow("shop/a", all()), deny("shop/d", vec![only(m! { namespaces: ["blog"] })])],
            WEB,
            By("shop/a"),
        ),
        (
            "a DENY that does not match is no permission where an ALLOW is missed",
            vec![
                allow("shop/a", vec![only(m! { namespaces: ["bank"] })]),
                deny("shop/d", vec![only(m! { namespaces: ["blog"] })]),
            ],
            WEB,
            NotAllowed,
        ),
        (
            "ALLOW policies are OR-ed",
            vec![
                allow("shop/a", vec![only(m! { namespaces: ["bank"] })]),
                allow("shop/b", vec![only(m! { namespaces: ["shop"] })]),
            ],
            WEB,
            By("shop/b"),
        ),
        (
            "one missed ALLOW is enough to refuse",
            vec![allow("shop/a", vec![only(m! { namespaces: ["bank"] })])],
            WEB,
            NotAllowed,
        ),
        (
            "DENY policies are OR-ed",
            vec![
                deny("shop/d", vec![only(m! { namespaces: ["bank"] })]),
                deny("shop/e", vec![only(m! { namespaces: ["shop"] })]),
            ],
            WEB,
            DeniedBy("shop/e"),
        ),
        ("another namespace's policies do not concern it", vec![deny("blog/d", all())], WEB, Free),
    ];
    for (name, policies, from, expect) in rows {
        check(name, policies, from, expect);
    }
}

#[test]
fn rules_clauses_and_matches_combine() {
    let web = || m! { namespaces: ["shop"] };
    let bank = || m! { namespaces: ["bank"] };
    let empty = || m! {};
    let rows: Vec<(&str, Vec<Rule>, From, Expect)> = vec![
        ("a rule without clauses matches", vec![rule([])], WEB, By("shop/a")),
        ("rules are OR-ed", vec![only(bank()), only(web())], WEB, By("shop/a")),
        ("no rule matching is a miss", vec![only(bank()), only(bank())], WEB, NotAllowed),
        ("clauses are AND-ed", vec![rule([vec![web()], vec![bank()]])], WEB, NotAllowed),
        (
            "clauses that all match",
            vec![rule([vec![web()], vec![m! { destination_ports: ["8080"] }]])],
            WEB,
            By("shop/a"),
        ),
        ("matches are OR-ed", vec![rule([vec![bank(), web()]])], WEB, By("shop/a")),
        ("a clause without matches matches", vec![rule([vec![]])], WEB, By("shop/a")),
        ("a match without conditions never matches", vec![only(empty())], WEB, NotAllowed),
        ("nor does it beside others spoil them", vec![rule([vec![empty(), web()]])], WEB, By("shop/a")),
        (
            "fields are AND-ed",
            vec![only(m! { namespaces: ["shop"], destination_ports: ["9090"] })],
            WEB,
            NotAllowed,
        ),
        ("values are OR-ed", vec![only(m! { namespaces: ["bank", "shop"] })], WEB, By("shop/a")),
    ];
    for (name, rules, from, expect) in rows {
        check(name, vec![allow("shop/a", rules)], from, expect);
    }
}

/// Rows of one match: whether a peer is matched by it.
#[test]
fn each_match_field_alone() {
    const V6: From = ("shop/web", "fd00:7::7", 8080);
    const MAPPED: From = ("shop/web", "::ffff:10.1.0.7", 8080);
    const CASE: From = ("Shop/web", "10.1.0.7", 8080);
    let rows = vec![
        ("principal exact", m! { principals: ["cluster.local/ns/shop/sa/web"] }, WEB, true),
        ("principal exact, another account", m! { principals: ["cluster.local/ns/shop/sa/api"] }, WEB, false),
        ("principal exact is no prefix", m! { principals: ["cluster.local/ns/shop/sa/we"] }, WEB, false),
        (
            "principal with scheme never matches",
            m! { principals: ["spiffe://cluster.local/ns/shop/sa/web"] },
            WEB,
            false,
        ),
        ("principal prefix", m! { principals: ["cluster.local/ns/shop/*"] }, WEB, true),
        ("principal prefix, another namespace", m! { principals: ["cluster.local/ns/shop/*"] }, OTHER, false),
        ("principal prefix begins after the scheme", m! { principals: ["cluster.local*"] }, WEB, true),
        ("principal suffix", m! { principals: ["*/sa/web"] }, WEB, true),
        ("principal suffix, another account", m! { principals: ["*/sa/web"] }, OTHER, false),
        ("principal presence", m! { principals: ["*"] }, WEB, true),
        ("principal presence without identity", m! { principals: ["*"] }, UNAUTHENTICATED, false),
        ("principal prefix without identity", m! { principals: ["cluster.local*"] }, UNAUTHENTICATED, false),
        ("any of several principals", m! { principals: ["x", "*/sa/web"] }, WEB, true),
        ("not principal", m! { not_principals: ["*/sa/web"] }, WEB, false),
        ("not principal, another", m! { not_principals: ["*/sa/web"] }, OTHER, true),
        ("not principal holds without identity", m! { not_principals: ["*/sa/web"] }, UNAUTHENTICATED, true),
        (
            "not principal presence: only without identity",
            m! { not_principals: ["*"] },
            UNAUTHENTICATED,
            true,
        ),
        ("not principal presence with identity", m! { not_principals: ["*"] }, WEB, false),
        ("none of several", m! { not_principals: ["x", "*/sa/web"] }, WEB, false),
        (
            "principal and not principal",
            m! { principals: ["cluster.local/ns/shop/*"], not_principals: ["*/sa/web"] },
            WEB,
            false,
        ),
        ("namespace exact", m! { namespaces: ["shop"] }, WEB, true),
        ("namespace exact, another", m! { namespaces: ["shop"] }, OTHER, false),
        ("namespace prefix", m! { namespaces: ["sh*"] }, WEB, true),
        ("namespace suffix", m! { namespaces: ["*op"] }, WEB, true),
        ("namespace presence", m! { namespaces: ["*"] }, OTHER, true),
        ("namespace presence without identity", m! { namespaces: ["*"] }, UNAUTHENTICATED, false),
        ("namespaces compare letter by letter", m! { namespaces: ["shop"] }, CASE, false),
        ("namespace without identity", m! { namespaces: ["shop"] }, UNAUTHENTICATED, false),
        ("not namespace", m! { not_namespaces: ["shop"] }, WEB, false),
        ("not namespace, another", m! { not_namespaces: ["shop"] }, OTHER, true),
        ("not namespace holds without identity", m! { not_namespaces: ["shop"] }, UNAUTHENTICATED, true),
        ("service account", m! { service_accounts: ["shop/web"] }, WEB, true),
        ("service account of another namespace", m! { service_accounts: ["blog/web"] }, WEB, false),
        ("service account without identity", m! { service_accounts: ["shop/web"] }, UNAUTHENTICATED, false),
        ("not service account", m! { not_service_accounts: ["shop/web"] }, WEB, false),
        ("not service account, another", m! { not_service_accounts: ["shop/web"] }, OTHER, true),
        (
            "not service account holds without identity",
            m! { not_service_accounts: ["shop/web"] },
            UNAUTHENTICATED,
            true,
        ),
        ("source address", m! { source_ips: ["10.1.0.7"] }, WEB, true),
        ("source block", m! { source_ips: ["10.1.0.0/16"] }, WEB, true),
        ("source block, another", m! { source_ips: ["10.1.0.0/16"] }, OTHER, false),
        ("source block written with host bits", m! { source_ips: ["10.1.9.9/16"] }, WEB, true),
        ("all of IPv4", m! { source_ips: ["0.0.0.0/0"] }, WEB, true),
        ("all of IPv4 holds no IPv6", m! { source_ips: ["0.0.0.0/0"] }, V6, false),
        ("all of IPv6 holds no IPv4", m! { source_ips: ["::/0"] }, WEB, false),
        ("source block, IPv6", m! { source_ips: ["fd00:7::/32"] }, V6, true),
        ("a v4-mapped source is IPv4", m! { source_ips: ["10.1.0.0/16"] }, MAPPED, true),
        ("a v4-mapped block is IPv4", m! { source_ips: ["::ffff:10.1.0.0/112"] }, WEB, true),
        ("not source block", m! { not_source_ips: ["10.1.0.0/16"] }, WEB, false),
        ("not source block, another", m! { not_source_ips: ["10.1.0.0/16"] }, OTHER, true),
        (
            "source block with a hole",
            m! { source_ips: ["10.1.0.0/16"], not_source_ips: ["10.1.0.7/32"] },
            WEB,
            false,
        ),
        ("source address needs no identity", m! { source_ips: ["10.1.0.7"] }, UNAUTHENTICATED, true),
        ("destination address", m! { destination_ips: ["10.1.0.1"] }, WEB, true),
        ("destination address, another", m! { destination_ips: ["10.1.0.2"] }, WEB, false),
        ("destination address of the other family", m! { destination_ips: ["10.1.0.1"] }, V6, false),
        ("not destination address", m! { not_destination_ips: ["10.1.0.0/24"] }, WEB, false),
        ("not destination address, another", m! { not_destination_ips: ["10.1.0.0/24"] }, V6, true),
        ("port", m! { destination_ports: ["8080"] }, WEB, true),
        ("port, another", m! { destination_ports: ["80"] }, WEB, false),
        ("one of several ports", m! { destination_ports: ["80", "8080"] }, WEB, true),
        ("not port", m! { not_destination_ports: ["8080"] }, WEB, false),
        ("not port, another", m! { not_destination_ports: ["80"] }, WEB, true),
        (
            "port and not port",
            m! { destination_ports: ["8080"], not_destination_ports: ["8080"] },
            WEB,
            false,
        ),
        (
            "everything at once",
            m! {
                namespaces: ["shop"], not_namespaces: ["bank"], service_accounts: ["shop/web"],
                not_service_accounts: ["shop/api"], principals: ["*"], not_principals: ["*/sa/api"],
                source_ips: ["10.0.0.0/8"], not_source_ips: ["10.2.0.0/16"], destination_ips: ["10.1.0.1"],
                not_destination_ips: ["10.1.0.2"], destination_ports: ["8080"], not_destination_ports: ["80"],
            },
            WEB,
            true,
        ),
    ];
    assert!(rows.len() >= 60, "the table holds {} rows", rows.len());
    for (name, m, from, matches) in rows {
        check(
            &format!("{name}, ALLOW"),
            vec![allow("shop/a", vec![only(m.clone())])],
            from,
            if matches { By("shop/a") } else { NotAllowed },
        );
        check(
            &format!("{name}, DENY"),
            vec![deny("shop/d", vec![only(m)])],
            from,
            if matches { DeniedBy("shop/d") } else { Free },
        );
    }
}

#[test]
fn policy_applies_by_scope() {
    let global = Authorization { scope: Scope::Global, ..deny("ambit-system/d", all()) };
    check("a global policy concerns every workload", vec![global], WEB, DeniedBy("ambit-system/d"));

    let listed = Authorization { scope: Scope::WorkloadSelector, ..deny("blog/d", all()) };
    check("a listed policy concerns the workload, wherever it lives", vec![listed], WEB, DeniedBy("blog/d"));

    let unlisted = Authorization { scope: Scope::WorkloadSelector, ..deny("shop/d", all()) };
    let mesh = mesh([pod("shop/cart", &["10.1.0.1"])], [], [unlisted]);
    let peer = Request { identity: None, source: ip("10.1.0.7"), destination: socket("10.1.0.1:8080") };
    let outcome = authorize(&mesh, &uid("shop/cart"), &peer).outcome;
    assert!(outcome.is_ok(), "a policy that selects others does not concern it: {outcome:?}");
}

#[test]
fn dry_run_is_reported_and_not_enforced() {
    let dry = |policy: Authorization| Authorization { dry_run: true, ..policy };

    let decision = ask(vec![dry(deny("shop/d", all()))], WEB);
    assert!(decision.outcome.is_ok(), "a dry-run DENY denies nothing: {:?}", decision.outcome);
    let reported =
        DryRun { policy: policy_key("shop/d"), action: ambit_core::model::Action::Deny, matched: true };
    assert_eq!(decision.dry_run, vec![reported]);

    let decision = ask(vec![dry(allow("shop/a", vec![]))], WEB);
    assert!(decision.outcome.is_ok(), "a dry-run ALLOW demands nothing: {:?}", decision.outcome);
    assert_eq!(decision.dry_run.iter().map(|d| d.matched).collect::<Vec<_>>(), vec![false]);

    let decision = ask(vec![dry(allow("shop/dry", all())), allow("shop/a", vec![])], WEB);
    assert!(decision.outcome.is_err(), "a dry-run ALLOW permits nothing: {:?}", decision.outcome);

    let decision = ask(vec![dry(deny("shop/d", all()))], UNAUTHENTICATED);
    assert_eq!(decision.dry_run.len(), 1, "dry runs are reported for peers without identity too");
}

#[test]
fn the_destination_must_be_the_workloads() {
    let mut node_agent = pod("shop/agent", &["192.168.0.1"]);
    node_agent.network_mode = ambit_core::model::NetworkMode::HostNetwork;
    let mesh = mesh([pod("shop/cart", &["10.1.0.1"]), pod("shop/api", &["10.1.0.2"]), node_agent], [], []);
    let rows = [
        ("its own address", "shop/cart", "10.1.0.1:80", None),
        ("its own address, v4-mapped", "shop/cart", "[::ffff:10.1.0.1]:80", None),
        ("another pod's address", "shop/cart", "10.1.0.2:80", Some(Reason::AddressMismatch)),
        ("loopback", "shop/cart", "127.0.0.1:80", Some(Reason::AddressMismatch)),
        ("its node's address", "shop/agent", "192.168.0.1:80", Some(Reason::AddressMismatch)),
        ("loopback, IPv6", "shop/cart", "[::1]:80", Some(Reason::AddressMismatch)),
        ("an address that it gained later", "shop/cart", "10.8.0.1:80", None),
        ("an unknown workload", "shop/gone", "10.1.0.1:80", Some(Reason::WorkloadUnknown)),
    ];
    for (name, workload, destination, refused) in rows {
        let peer = Request { identity: None, source: ip("10.1.0.7"), destination: socket(destination) };
        let outcome = authorize(&mesh, &uid(workload), &peer).outcome;
        assert_eq!(outcome.as_ref().err().map(Denial::reason), refused, "{name}: {outcome:?}");
        if let Ok(permit) = outcome {
            let address = socket(destination);
            let address = std::net::SocketAddr::new(address.ip().to_canonical(), address.port());
            assert_eq!(permit.address(), address, "{name}");
            assert_eq!(permit.workload().uid, uid(workload), "{name}");
        }
    }
}

/// A workload may get an address that the mesh has not heard of: what names only ports holds there too.
#[test]
fn plaintext_to_an_address_that_was_gained_later() {
    let by_port = || allow("shop/a", vec![only(m! { destination_ports: ["80"] })]);
    let by_address = || allow("shop/a", vec![only(m! { destination_ips: ["10.1.0.1"] })]);
    let strict = || deny("shop/s", vec![only(m! { not_principals: ["*"] })]);
    let rows = [
        ("an ALLOW by port", by_port(), "10.8.0.1:80", None),
        ("another port", by_port(), "10.8.0.1:81", Some(Reason::PolicyNotAllowed)),
        ("an ALLOW by another address", by_address(), "10.8.0.1:80", Some(Reason::PolicyNotAllowed)),
        ("STRICT", strict(), "10.8.0.1:80", Some(Reason::PolicyDenied)),
    ];
    for (name, policy, destination, refused) in rows {
        let mesh = mesh([pod("shop/cart", &["10.1.0.1"])], [], [policy]);
        let peer = Request { identity: None, source: ip("10.1.0.7"), destination: socket(destination) };
        let outcome = authorize(&mesh, &uid("shop/cart"), &peer).outcome;
        assert_eq!(outcome.as_ref().err().map(Denial::reason), refused, "{name}: {outcome:?}");
    }
}

#[test]
fn a_missing_policy_denies() {
    let mut cart = pod("shop/cart", &["10.1.0.1"]);
    cart.policies = vec![policy_key("shop/late")];
    let mut mesh = mesh([cart], [], [allow("shop/a", all())]);
    let peer = Request { identity: None, source: ip("10.1.0.7"), destination: socket("10.1.0.1:80") };
    let outcome = authorize(&mesh, &uid("shop/cart"), &peer).outcome;
    let denial = outcome.expect_err("a workload must not run without a policy that selects it");
    assert_eq!((denial.reason(), denial.policy()), (Reason::PolicyMissing, Some(&policy_key("shop/late"))));

    let late = Authorization { scope: Scope::WorkloadSelector, ..deny("shop/late", vec![]) };
    mesh.apply([ambit_core::mesh::Change::PutPolicy(late.into())]);
    assert!(authorize(&mesh, &uid("shop/cart"), &peer).outcome.is_ok());
}

#[test]
fn permits_tell_whether_they_depend_on_the_source() {
    let by_source = || only(m! { source_ips: ["10.1.0.0/16"] });
    let by_name = || only(m! { namespaces: ["shop"] });
    let rows = [
        ("no policies", vec![], false),
        ("identity only", vec![allow("shop/a", vec![by_name()])], false),
        ("an ALLOW by source", vec![allow("shop/a", vec![by_source()])], true),
        (
            "a DENY by source that did not match",
            vec![deny("shop/d", vec![only(m! { source_ips: ["10.9.0.0/16"] })])],
            true,
        ),
        ("a negated source", vec![deny("shop/d", vec![only(m! { not_source_ips: ["10.0.0.0/8"] })])], true),
        (
            "a dry run by source",
            vec![Authorization { dry_run: true, ..deny("shop/d", vec![by_source()]) }],
            false,
        ),
    ];
    for (name, policies, depends) in rows {
        let permit = ask(policies, WEB).outcome.expect(name);
        assert_eq!(permit.depends_on_source(), depends, "{name}");
    }
}

#[test]
fn denials_name_object_and_reason() {
    let denied = ask(
        vec![deny(
            "shop/no-blog",
            vec![only(m! { namespaces: ["bank"] }), only(m! { namespaces: ["blog"] })],
        )],
        OTHER,
    );
    let denial = denied.outcome.expect_err("denied");
    assert_eq!(denial.policy(), Some(&policy_key("shop/no-blog")));
    assert_eq!(
        denial.to_string(),
        "policy shop/no-blog (rule 1) denies spiffe://cluster.local/ns/blog/sa/cms (10.2.0.9) access to \
         Kubernetes//Pod/shop/cart at 10.1.0.1:8080"
    );
    let missed = ask(vec![allow("shop/a", vec![])], UNAUTHENTICATED).outcome.expect_err("not allowed");
    assert_eq!(
        missed.to_string(),
        "no ALLOW policy permits a peer without identity (10.1.0.7) access to Kubernetes//Pod/shop/cart at \
         10.1.0.1:8080"
    );
    assert_eq!((denial.reason(), missed.reason()), (Reason::PolicyDenied, Reason::PolicyNotAllowed));
}
