//! What may arrive.

use std::collections::BTreeMap;

use ambit_core::inbound::{PlaintextMode, PlaintextModes, authorize_tunnel, plaintext_modes};
use ambit_core::model::{Authorization, Scope, Workload};

use crate::build::{With as _, allow, deny, identity, ip, m, mesh, only, pod, policy_key, rule, socket, uid};

#[test]
fn tunnels_are_authorized() {
    let denied = deny("shop/d", vec![only(m! { namespaces: ["blog"] })]);
    let mesh =
        mesh([pod("shop/cart", &["10.1.0.1", "fd00::1"]), pod("shop/api", &["10.1.0.2"])], [], [denied]);
    let rows = [
        ("a port of the app", "shop/web", "10.1.0.1:8080", None),
        ("by IPv6", "shop/web", "[fd00::1]:8080", None),
        ("a reserved port: outbound", "shop/web", "10.1.0.1:15001", Some("reserved_port")),
        ("a reserved port: inbound", "shop/web", "10.1.0.1:15006", Some("reserved_port")),
        ("a reserved port: HBONE", "shop/web", "10.1.0.1:15008", Some("reserved_port")),
        ("no other port is reserved", "shop/web", "10.1.0.1:15021", None),
        ("another pod's address", "shop/web", "10.1.0.2:8080", Some("address_mismatch")),
        ("loopback", "shop/web", "127.0.0.1:8080", Some("address_mismatch")),
        ("loopback, IPv6", "shop/web", "[::1]:8080", Some("address_mismatch")),
        ("an unspecified address", "shop/web", "0.0.0.0:8080", Some("address_mismatch")),
        ("refused by policy", "blog/cms", "10.1.0.1:8080", Some("policy_denied")),
    ];
    for (name, peer, authority, refused) in rows {
        let decision =
            authorize_tunnel(&mesh, &uid("shop/cart"), socket(authority), &identity(peer), ip("10.1.0.7"));
        assert_eq!(
            decision.outcome.as_ref().err().map(|denial| denial.reason().name()),
            refused,
            "{name}: {decision:?}"
        );
    }
}

fn modes(policies: Vec<Authorization>) -> (PlaintextMode, BTreeMap<u16, PlaintextMode>) {
    let mut cart = pod("shop/cart", &["10.1.0.1", "fd00::1"]);
    cart.policies =
        policies.iter().filter(|p| p.scope == Scope::WorkloadSelector).map(|p| p.key.clone()).collect();
    let inbound = plaintext_modes(&mesh([cart], [], policies), &uid("shop/cart"));
    (inbound.default, inbound.ports)
}

#[test]
fn plaintext_modes_follow_policies() {
    use PlaintextMode::{Check, Open, Strict};
    let unidentified = || m! { not_principals: ["*"] };
    let dry = |policy: Authorization| Authorization { dry_run: true, ..policy };
    let rows: Vec<(&str, Vec<Authorization>, PlaintextMode, &[(u16, PlaintextMode)])> = vec![
        ("no policy", vec![], Open, &[]),
        ("STRICT", vec![deny("shop/s", vec![only(unidentified())])], Strict, &[]),
        (
            "more ports than one workload may have",
            vec![deny("shop/s", vec![only(m! {}.with(|m| m.destination_ports = (1..=1025).collect()))])],
            Check,
            &[],
        ),
        (
            "STRICT on a port",
            vec![deny("shop/s", vec![only(m! { not_principals: ["*"], destination_ports: ["8080"] })])],
            Open,
            &[(8080, Strict)],
        ),
        (
            "STRICT but for a port",
            vec![deny("shop/s", vec![only(m! { not_principals: ["*"], not_destination_ports: ["9090"] })])],
            Strict,
            &[(9090, Open)],
        ),
        ("an ALLOW by identity", vec![allow("shop/a", vec![only(m! { principals: ["*"] })])], Strict, &[]),
        (
            "an ALLOW by namespace",
            vec![allow("shop/a", vec![only(m! { namespaces: ["shop"] })])],
            Strict,
            &[],
        ),
        (
            "an ALLOW by account",
            vec![allow("shop/a", vec![only(m! { service_accounts: ["shop/web"] })])],
            Strict,
            &[],
        ),
        ("an ALLOW of nothing", vec![allow("shop/a", vec![])], Strict, &[]),
        ("an ALLOW of everything", vec![allow("shop/a", vec![rule([])])], Check, &[]),
        (
            "an ALLOW by source",
            vec![allow("shop/a", vec![only(m! { source_ips: ["10.0.0.0/8"] })])],
            Check,
            &[],
        ),
        (
            "an ALLOW by identity and source",
            vec![allow("shop/a", vec![only(m! { source_ips: ["10.0.0.0/8"], principals: ["*"] })])],
            Strict,
            &[],
        ),
        (
            "an ALLOW by port",
            vec![allow("shop/a", vec![only(m! { destination_ports: ["8080"] })])],
            Strict,
            &[(8080, Check)],
        ),
        (
            "ALLOWs that meet: one identity, one port",
            vec![
                allow("shop/a", vec![only(m! { principals: ["*"] })]),
                allow("shop/b", vec![only(m! { destination_ports: ["8080"] })]),
            ],
            Strict,
            &[(8080, Check)],
        ),
        (
            "STRICT beside an open ALLOW",
            vec![deny("shop/s", vec![only(unidentified())]), allow("shop/a", vec![rule([])])],
            Strict,
            &[],
        ),
        ("a DENY by source", vec![deny("shop/d", vec![only(m! { source_ips: ["10.0.0.0/8"] })])], Check, &[]),
        (
            "a DENY of every IPv4 source",
            vec![deny("shop/d", vec![only(m! { source_ips: ["0.0.0.0/0"] })])],
            Check,
            &[],
        ),
        (
            "a DENY of every source",
            vec![deny("shop/d", vec![only(m! { source_ips: ["0.0.0.0/0", "::/0"] })])],
            Strict,
            &[],
        ),
        ("a DENY by identity", vec![deny("shop/d", vec![only(m! { principals: ["*/sa/web"] })])], Check, &[]),
        (
            "a DENY of another's port",
            vec![deny("shop/d", vec![only(m! { destination_ports: ["22"] })])],
            Open,
            &[(22, Strict)],
        ),
        (
            "a DENY at another address",
            vec![deny("shop/d", vec![only(m! { destination_ips: ["10.9.9.9"] })])],
            Open,
            &[],
        ),
        (
            "a DENY at one of its addresses",
            vec![deny("shop/d", vec![only(m! { destination_ips: ["10.1.0.1"] })])],
            Check,
            &[],
        ),
        ("a DENY of everything", vec![deny("shop/d", vec![rule([])])], Strict, &[]),
        ("a DENY that never matches", vec![deny("shop/d", vec![])], Open, &[]),
        (
            "a dry-run STRICT is to be reported",
            vec![dry(deny("shop/s", vec![only(unidentified())]))],
            Check,
            &[],
        ),
        ("a dry-run ALLOW is to be reported", vec![dry(allow("shop/a", vec![]))], Check, &[]),
        (
            "a dry run does not soften",
            vec![dry(allow("shop/a", vec![rule([])])), deny("shop/s", vec![only(unidentified())])],
            Strict,
            &[],
        ),
    ];
    for (name, policies, default, ports) in rows {
        assert_eq!(modes(policies), (default, ports.iter().copied().collect()), "{name}");
    }
}

#[test]
fn plaintext_to_unknown_workloads_is_checked() {
    let unknown =
        PlaintextModes { default: PlaintextMode::Check, ports: BTreeMap::new(), probe_ports: [].into() };
    assert_eq!(plaintext_modes(&mesh([], [], []), &uid("shop/gone")), unknown, "an unknown workload");

    let late = Workload { policies: vec![policy_key("shop/late")], ..pod("shop/cart", &["10.1.0.1"]) };
    assert_eq!(plaintext_modes(&mesh([late], [], []), &uid("shop/cart")), unknown, "an unknown policy");

    let pending = pod("shop/cart", &[]);
    assert_eq!(plaintext_modes(&mesh([pending], [], []), &uid("shop/cart")), unknown, "an unknown address");
}

#[test]
fn probe_ports_are_listed_under_any_policy() {
    let probed = Workload { probe_ports: vec![8081, 9090], ..pod("shop/cart", &["10.1.0.1"]) };
    let strict = deny("shop/s", vec![only(m! { not_principals: ["*"] })]);
    let inbound = plaintext_modes(&mesh([probed], [], [strict]), &uid("shop/cart"));
    assert_eq!((inbound.default, inbound.probe_ports), (PlaintextMode::Strict, [8081, 9090].into()));
}
