//! Policy against a slow reference that is written the way the rules are documented, and the kernel's
//! plaintext modes against policy: they must never say another thing.

use std::net::{IpAddr, SocketAddr};

use ambit_core::inbound::{PlaintextMode, plaintext_modes};
use ambit_core::model::{
    Action, Authorization, Clause, Identity, IpBlock, Match, Rule, Scope, ServiceAccountMatch, StringMatch,
};
use ambit_core::policy::{Request, authorize};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::build::{identity, ip, mesh, pod, policy_key, uid};

const PORTS: [u16; 3] = [80, 8080, 9090];
const SOURCES: [&str; 5] = ["10.1.0.7", "10.2.0.9", "192.168.1.1", "fd00:7::7", "fd00:8::8"];
const OWN: [&str; 2] = ["10.1.0.1", "fd00::1"];

fn texts(values: &'static [&'static str]) -> impl Strategy<Value = Vec<StringMatch>> {
    let value = prop_oneof![
        3 => select(values).prop_map(|v| StringMatch::Exact(v.into())),
        1 => select(values).prop_map(|v| StringMatch::Prefix(v[..v.len() / 2].into())),
        1 => select(values).prop_map(|v| StringMatch::Suffix(v[v.len() / 2..].into())),
        1 => Just(StringMatch::Presence),
    ];
    sparse(value)
}

/// Mostly absent, so that whole policies match often enough.
fn sparse<T: Clone + std::fmt::Debug + 'static>(
    value: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Vec<T>> {
    prop_oneof![6 => Just(Vec::new()), 1 => vec(value, 1..3)].boxed()
}

fn blocks() -> BoxedStrategy<Vec<IpBlock>> {
    let blocks = ["10.1.0.0/16", "10.2.0.9", "0.0.0.0/0", "::/0", "fd00:7::/32", "10.1.0.1", "::ffff:0:0/96"];
    sparse(select(blocks.to_vec()).prop_map(|block| block.parse().expect("a block")))
}

fn accounts() -> BoxedStrategy<Vec<ServiceAccountMatch>> {
    let account = (select(vec!["shop", "blog"]), select(vec!["web", "api"]));
    sparse(account.prop_map(|(n, a)| ServiceAccountMatch { namespace: n.into(), service_account: a.into() }))
}

fn ports() -> BoxedStrategy<Vec<u16>> {
    sparse(select(PORTS.to_vec()))
}

fn matches() -> impl Strategy<Value = Match> {
    const NAMESPACES: &[&str] = &["shop", "blog"];
    const PRINCIPALS: &[&str] = &["cluster.local/ns/shop/sa/web", "cluster.local/ns/blog/sa/api"];
    let who =
        (texts(NAMESPACES), texts(NAMESPACES), accounts(), accounts(), texts(PRINCIPALS), texts(PRINCIPALS));
    let wher = (blocks(), blocks(), blocks(), blocks(), ports(), ports());
    (who, wher).prop_map(|(who, wher)| Match {
        namespaces: who.0,
        not_namespaces: who.1,
        service_accounts: who.2,
        not_service_accounts: who.3,
        principals: who.4,
        not_principals: who.5,
        source_ips: wher.0,
        not_source_ips: wher.1,
        destination_ips: wher.2,
        not_destination_ips: wher.3,
        destination_ports: wher.4,
        not_destination_ports: wher.5,
    })
}

fn policies() -> impl Strategy<Value = Vec<Authorization>> {
    let clause = vec(matches(), 0..3).prop_map(|matches| Clause { matches });
    let rule = vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let scope = prop_oneof![Just(Scope::Namespace), Just(Scope::Global), Just(Scope::WorkloadSelector)];
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    let policy = (vec(rule, 0..3), scope, action, prop::bool::weighted(0.15));
    vec(policy, 0..4).prop_map(|policies| {
        let numbered = policies.into_iter().enumerate();
        let build = |(n, (rules, scope, action, dry_run))| Authorization {
            key: policy_key(&format!("shop/p{n}")),
            scope,
            action,
            rules,
            dry_run,
        };
        numbered.map(build).collect()
    })
}

fn who() -> impl Strategy<Value = Option<Identity>> {
    let names = vec!["shop/web", "shop/api", "blog/web", "blog/api"];
    prop_oneof![Just(None), select(names).prop_map(|name| Some(identity(name)))]
}

/// Whether a text compares as asked, written out.
fn reference_text(how: &StringMatch, text: Option<&str>) -> bool {
    let Some(text) = text else { return false };
    match how {
        StringMatch::Exact(e) => text == e.as_ref(),
        StringMatch::Prefix(p) => text.len() >= p.len() && text[..p.len()] == **p,
        StringMatch::Suffix(s) => text.len() >= s.len() && text[text.len() - s.len()..] == **s,
        StringMatch::Presence => !text.is_empty(),
    }
}

fn bits(address: IpAddr) -> (u8, u128) {
    match address.to_canonical() {
        IpAddr::V4(a) => (32, u128::from(u32::from(a))),
        IpAddr::V6(a) => (128, u128::from(a)),
    }
}

/// Bit by bit; a block within the mapped range is an IPv4 one.
fn reference_block(block: &IpBlock, address: IpAddr) -> bool {
    let mut length = block.0.prefix_len();
    let (width, network) = bits(block.0.addr());
    if block.0.addr().is_ipv6() && width == 32 {
        length -= 96;
    }
    let (other, address) = bits(address);
    width == other && (0..length).all(|bit| (network ^ address) >> (width - 1 - bit) & 1 == 0)
}

fn reference_match(m: &Match, who: Option<&Identity>, source: IpAddr, destination: SocketAddr) -> bool {
    let principal = who.map(|i| format!("{}/ns/{}/sa/{}", i.trust_domain, i.namespace, i.service_account));
    let principal = principal.as_deref();
    let namespace = who.map(|i| &*i.namespace);
    let account = |a: &ServiceAccountMatch| {
        who.is_some_and(|i| i.namespace == a.namespace && i.service_account == a.service_account)
    };
    let conditions = [
        m.namespaces.is_empty() || m.namespaces.iter().any(|s| reference_text(s, namespace)),
        !m.not_namespaces.iter().any(|s| reference_text(s, namespace)),
        m.principals.is_empty() || m.principals.iter().any(|s| reference_text(s, principal)),
        !m.not_principals.iter().any(|s| reference_text(s, principal)),
        m.service_accounts.is_empty() || m.service_accounts.iter().any(account),
        !m.not_service_accounts.iter().any(account),
        m.source_ips.is_empty() || m.source_ips.iter().any(|b| reference_block(b, source)),
        !m.not_source_ips.iter().any(|b| reference_block(b, source)),
        m.destination_ips.is_empty()
            || m.destination_ips.iter().any(|b| reference_block(b, destination.ip())),
        !m.not_destination_ips.iter().any(|b| reference_block(b, destination.ip())),
        m.destination_ports.is_empty() || m.destination_ports.contains(&destination.port()),
        !m.not_destination_ports.contains(&destination.port()),
    ];
    *m != Match::default() && conditions.iter().all(|holds| *holds)
}

/// Every order of evaluation spelt out; nothing shared with the engine but the nouns.
fn reference(
    policies: &[Authorization],
    who: Option<&Identity>,
    source: IpAddr,
    destination: SocketAddr,
) -> bool {
    let matching = |policy: &&Authorization| {
        policy.rules.iter().any(|rule| {
            rule.clauses.iter().all(|clause| {
                clause.matches.is_empty()
                    || clause.matches.iter().any(|m| reference_match(m, who, source, destination))
            })
        })
    };
    let enforced: Vec<&Authorization> = policies.iter().filter(|policy| !policy.dry_run).collect();
    let denies = enforced.iter().copied().filter(|policy| policy.action == Action::Deny);
    let allows: Vec<&Authorization> =
        enforced.iter().copied().filter(|policy| policy.action == Action::Allow).collect();
    if denies.clone().any(|policy| matching(&policy)) {
        return false;
    }
    allows.is_empty() || allows.iter().any(matching)
}

fn world(policies: &[Authorization]) -> ambit_core::mesh::Mesh {
    let mut cart = pod("shop/cart", &OWN);
    let listed = policies.iter().filter(|policy| policy.scope == Scope::WorkloadSelector);
    cart.policies = listed.map(|policy| policy.key.clone()).collect();
    mesh([cart], [], policies.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn authorize_agrees_with_the_reference(
        policies in policies(),
        who in who(),
        source in select(SOURCES.to_vec()),
        own in select(OWN.to_vec()),
        port in select(PORTS.to_vec()),
    ) {
        let destination = SocketAddr::new(ip(own), port);
        let peer = Request { identity: who.as_ref(), source: ip(source), destination };
        let decision = authorize(&world(&policies), &uid("shop/cart"), &peer);
        prop_assert_eq!(
            decision.outcome.is_ok(),
            reference(&policies, who.as_ref(), ip(source), destination),
            "{:?}", decision.outcome
        );
        prop_assert_eq!(decision.dry_run.len(), policies.iter().filter(|policy| policy.dry_run).count());
        for dry in decision.dry_run {
            let policy = policies.iter().find(|policy| policy.key == dry.policy);
            let mut policy = policy.expect("its own").clone();
            policy.dry_run = false;
            let alone = reference(&[policy], who.as_ref(), ip(source), destination);
            prop_assert_eq!(dry.matched, (dry.action == Action::Allow) == alone);
        }
    }

    /// Where the kernel passes or refuses by itself, ztunnel would have said the same to every peer.
    #[test]
    fn plaintext_modes_agree_with_authorize(policies in policies()) {
        let mesh = world(&policies);
        let inbound = plaintext_modes(&mesh, &uid("shop/cart"));
        for port in PORTS.into_iter().chain([1234]) {
            let mode = inbound.ports.get(&port).copied().unwrap_or(inbound.default);
            for own in OWN {
                for source in SOURCES.into_iter().filter(|source| ip(source).is_ipv4() == ip(own).is_ipv4()) {
                    let destination = (ip(own), port).into();
                    let peer = Request { identity: None, source: ip(source), destination };
                    let permitted = authorize(&mesh, &uid("shop/cart"), &peer).outcome.is_ok();
                    match mode {
                        PlaintextMode::Open => {
                            prop_assert!(permitted, "port {} is OPEN, {} refused", port, source);
                        }
                        PlaintextMode::Strict => {
                            prop_assert!(!permitted, "port {} is STRICT, {} permitted", port, source);
                        }
                        PlaintextMode::Check => {}
                    }
                }
            }
        }
        if !policies.is_empty() && policies.iter().any(|policy| policy.action == Action::Allow) {
            prop_assert_ne!(inbound.default, PlaintextMode::Open, "an ALLOW policy concerns every port");
        }
    }
}
