//! Whether a policy matches, in three-valued logic (yes, no, unknown): [`policy`].
//!
//! Attributes may be unspecified, so that one engine decides about a given connection and about *every*
//! connection of a kind.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::model::{Authorization, Clause, Identity, IpBlock, Match, Rule, ServiceAccountMatch, StringMatch};

/// Ordered so that AND is the minimum and OR the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Truth {
    No,
    Maybe,
    Yes,
}

impl Truth {
    fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
            Self::Yes => Self::No,
        }
    }
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::Yes } else { Self::No }
    }
}

/// The peer's identity.
#[derive(Clone, Debug)]
pub(crate) enum Principal<'a> {
    /// With or without a certificate.
    Any,
    /// Without a certificate.
    Unauthenticated,
    Authenticated {
        identity: &'a Identity,
        principal: String,
    },
}

impl<'a> From<Option<&'a Identity>> for Principal<'a> {
    fn from(identity: Option<&'a Identity>) -> Self {
        match identity {
            Some(identity) => Self::Authenticated { identity, principal: identity.principal() },
            None => Self::Unauthenticated,
        }
    }
}

/// The peer's address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SourceAddress {
    /// Any address of the destination's family.
    Any,
    One(IpAddr),
}

/// The attributes of a connection that policies look at.
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a> {
    pub(crate) principal: Principal<'a>,
    pub(crate) source: SourceAddress,
    pub(crate) destination: SocketAddr,
}

/// Whether the policy matches, and the index of the rule that does (the first of the most certain).
pub(crate) fn policy(policy: &Authorization, attributes: &Attributes<'_>) -> (Truth, usize) {
    let mut best = (Truth::No, 0);
    for (index, candidate) in policy.rules.iter().enumerate() {
        let truth = rule(candidate, attributes);
        if truth > best.0 {
            best = (truth, index);
        }
        if truth == Truth::Yes {
            break;
        }
    }
    best
}

fn rule(rule: &Rule, attributes: &Attributes<'_>) -> Truth {
    rule.clauses.iter().map(|c| clause(c, attributes)).min().unwrap_or(Truth::Yes)
}

fn clause(clause: &Clause, attributes: &Attributes<'_>) -> Truth {
    clause.matches.iter().map(|m| conditions(m, attributes)).max().unwrap_or(Truth::Yes)
}

fn conditions(m: &Match, attributes: &Attributes<'_>) -> Truth {
    if m.is_empty() {
        return Truth::No;
    }
    let namespace = |value: &StringMatch| match &attributes.principal {
        Principal::Any => Truth::Maybe,
        Principal::Unauthenticated => Truth::No,
        Principal::Authenticated { identity, .. } => value.matches(&identity.namespace).into(),
    };
    let principal = |value: &StringMatch| match &attributes.principal {
        Principal::Any => Truth::Maybe,
        Principal::Unauthenticated => Truth::No,
        Principal::Authenticated { principal, .. } => value.matches(principal).into(),
    };
    let account = |value: &ServiceAccountMatch| match &attributes.principal {
        Principal::Any => Truth::Maybe,
        Principal::Unauthenticated => Truth::No,
        Principal::Authenticated { identity, .. } => Truth::from(
            value.namespace == identity.namespace && value.service_account == identity.service_account,
        ),
    };
    let source = |block: &IpBlock| match attributes.source {
        SourceAddress::One(address) => block.contains(address).into(),
        SourceAddress::Any => covers_family(block, attributes.destination.ip()),
    };
    let destination = |block: &IpBlock| block.contains(attributes.destination.ip()).into();
    let port = |port: &u16| (*port == attributes.destination.port()).into();

    // Cheapest first: most policies that do not match differ in the port.
    field(&m.destination_ports, &m.not_destination_ports, port)
        .min(field(&m.namespaces, &m.not_namespaces, namespace))
        .min(field(&m.service_accounts, &m.not_service_accounts, account))
        .min(field(&m.principals, &m.not_principals, principal))
        .min(field(&m.source_ips, &m.not_source_ips, source))
        .min(field(&m.destination_ips, &m.not_destination_ips, destination))
}

/// One field and its negation: any of `wanted` (where there are some) and none of `unwanted`.
fn field<T>(wanted: &[T], unwanted: &[T], truth: impl Fn(&T) -> Truth) -> Truth {
    let any = |values: &[T]| values.iter().map(&truth).max();
    let wanted = any(wanted).unwrap_or(Truth::Yes);
    let unwanted = any(unwanted).map_or(Truth::Yes, Truth::not);
    wanted.min(unwanted)
}

/// Whether the block holds all, none or some of the addresses of a family.
fn covers_family(block: &IpBlock, family: IpAddr) -> Truth {
    let block = block.canonical();
    match (block, family.to_canonical()) {
        (IpNet::V4(_), IpAddr::V6(_)) | (IpNet::V6(_), IpAddr::V4(_)) => Truth::No,
        _ if block.prefix_len() == 0 => Truth::Yes,
        _ => Truth::Maybe,
    }
}
