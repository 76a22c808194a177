//! A slow reference implementation of authorization, which follows the documentation of policies. It shares
//! only the model with the engine.

use std::net::{IpAddr, SocketAddr};

use ambit_core::model::{Action, Authorization, Identity, IpBlock, Match, ServiceAccountMatch, StringMatch};

/// Whether the policies allow the peer. All of them must select the destination.
pub fn allows(
    policies: &[Authorization],
    peer: Option<&Identity>,
    source: IpAddr,
    destination: SocketAddr,
) -> bool {
    let matching = |policy: &Authorization| {
        policy.rules.iter().any(|rule| {
            rule.clauses.iter().all(|clause| {
                clause.matches.is_empty()
                    || clause.matches.iter().any(|m| matched(m, peer, source, destination))
            })
        })
    };
    let enforced: Vec<_> = policies.iter().filter(|policy| !policy.dry_run).collect();
    if enforced.iter().any(|policy| policy.action == Action::Deny && matching(policy)) {
        return false;
    }
    let mut allowing = enforced.iter().filter(|policy| policy.action == Action::Allow).peekable();
    allowing.peek().is_none() || allowing.any(|policy| matching(policy))
}

fn matched(m: &Match, peer: Option<&Identity>, source: IpAddr, destination: SocketAddr) -> bool {
    if *m == Match::default() {
        return false;
    }
    let principal = peer.map(|i| format!("{}/ns/{}/sa/{}", i.trust_domain, i.namespace, i.service_account));
    let principal = principal.as_deref();
    let namespace = peer.map(|i| &*i.namespace);
    let account = |a: &ServiceAccountMatch| {
        peer.is_some_and(|i| i.namespace == a.namespace && i.service_account == a.service_account)
    };
    let (port, to) = (destination.port(), destination.ip());
    all_or_any(&m.namespaces, |s| text(s, namespace))
        && !m.not_namespaces.iter().any(|s| text(s, namespace))
        && all_or_any(&m.principals, |s| text(s, principal))
        && !m.not_principals.iter().any(|s| text(s, principal))
        && all_or_any(&m.service_accounts, account)
        && !m.not_service_accounts.iter().any(account)
        && all_or_any(&m.source_ips, |b| block(b, source))
        && !m.not_source_ips.iter().any(|b| block(b, source))
        && all_or_any(&m.destination_ips, |b| block(b, to))
        && !m.not_destination_ips.iter().any(|b| block(b, to))
        && all_or_any(&m.destination_ports, |p| *p == port)
        && !m.not_destination_ports.contains(&port)
}

/// Whether a value holds, or the field has no values.
fn all_or_any<T>(values: &[T], holds: impl Fn(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(holds)
}

fn text(pattern: &StringMatch, text: Option<&str>) -> bool {
    let Some(text) = text.map(str::as_bytes) else { return false };
    let same = |part: &str, at: usize| {
        part.bytes().enumerate().all(|(index, byte)| text.get(at + index) == Some(&byte))
    };
    match pattern {
        StringMatch::Exact(exact) => text.len() == exact.len() && same(exact, 0),
        StringMatch::Prefix(prefix) => same(prefix, 0),
        StringMatch::Suffix(suffix) => text.len() >= suffix.len() && same(suffix, text.len() - suffix.len()),
        StringMatch::Presence => !text.is_empty(),
    }
}

/// Compares bit by bit. A block within the v4-mapped range is an IPv4 block.
fn block(block: &IpBlock, address: IpAddr) -> bool {
    let (width, network) = bits(block.0.addr());
    let mut length = block.0.prefix_len();
    let (mut width, mut network) = (width, network);
    if block.0.addr().is_ipv6() && width == 32 {
        match length.checked_sub(96) {
            Some(shorter) => length = shorter,
            // Wider than the v4-mapped range: an IPv6 block.
            None => (width, network) = (128, raw(block.0.addr())),
        }
    }
    let (other, address) = bits(address);
    width == other && (0..length).all(|bit| (network ^ address) >> (width - 1 - bit) & 1 == 0)
}

fn bits(address: IpAddr) -> (u8, u128) {
    match address.to_canonical() {
        IpAddr::V4(address) => (32, u128::from(u32::from(address))),
        IpAddr::V6(address) => (128, u128::from(address)),
    }
}

fn raw(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}
