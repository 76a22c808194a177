//! Whether a policy matches, in three values: what is not known about a peer may be left open, so that one
//! engine serves both a connection at hand and the question what *every* peer of a kind would be told.

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

/// Who the peer is.
#[derive(Clone, Debug)]
pub(crate) enum Who<'a> {
    /// Whoever it may be.
    Anyone,
    /// A peer without certificate.
    Unidentified,
    Identified {
        identity: &'a Identity,
        principal: String,
    },
}

impl<'a> From<Option<&'a Identity>> for Who<'a> {
    fn from(identity: Option<&'a Identity>) -> Self {
        match identity {
            Some(identity) => Self::Identified { identity, principal: identity.principal() },
            None => Self::Unidentified,
        }
    }
}

/// Where the peer connects from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whence {
    /// Any address of the destination's family.
    Anywhere,
    Address(IpAddr),
}

/// What is known about a connection.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) who: Who<'a>,
    pub(crate) whence: Whence,
    pub(crate) destination: SocketAddr,
}

/// Whether the policy matches, and by which rule (the first of the surest).
pub(crate) fn policy(policy: &Authorization, facts: &Facts<'_>) -> (Truth, usize) {
    let mut best = (Truth::No, 0);
    for (index, candidate) in policy.rules.iter().enumerate() {
        let truth = rule(candidate, facts);
        if truth > best.0 {
            best = (truth, index);
        }
        if truth == Truth::Yes {
            break;
        }
    }
    best
}

fn rule(rule: &Rule, facts: &Facts<'_>) -> Truth {
    rule.clauses.iter().map(|c| clause(c, facts)).min().unwrap_or(Truth::Yes)
}

fn clause(clause: &Clause, facts: &Facts<'_>) -> Truth {
    clause.matches.iter().map(|m| conditions(m, facts)).max().unwrap_or(Truth::Yes)
}

fn conditions(m: &Match, facts: &Facts<'_>) -> Truth {
    if m.is_empty() {
        return Truth::No;
    }
    let namespace = |value: &StringMatch| match &facts.who {
        Who::Anyone => Truth::Maybe,
        Who::Unidentified => Truth::No,
        Who::Identified { identity, .. } => value.matches(&identity.namespace).into(),
    };
    let principal = |value: &StringMatch| match &facts.who {
        Who::Anyone => Truth::Maybe,
        Who::Unidentified => Truth::No,
        Who::Identified { principal, .. } => value.matches(principal).into(),
    };
    let account = |value: &ServiceAccountMatch| match &facts.who {
        Who::Anyone => Truth::Maybe,
        Who::Unidentified => Truth::No,
        Who::Identified { identity, .. } => Truth::from(
            value.namespace == identity.namespace && value.service_account == identity.service_account,
        ),
    };
    let source = |block: &IpBlock| match facts.whence {
        Whence::Address(address) => block.contains(address).into(),
        Whence::Anywhere => covers_family(block, facts.destination.ip()),
    };
    let destination = |block: &IpBlock| block.contains(facts.destination.ip()).into();
    let port = |port: &u16| (*port == facts.destination.port()).into();

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
