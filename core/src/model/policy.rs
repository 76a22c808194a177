//! Authorization policies as on the wire: rules OR-ed, clauses AND-ed, matches OR-ed, fields AND-ed.
//!
//! Entry point: [`Authorization`].

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::key::PolicyKey;

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every workload of the mesh.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads that list the policy.
    WorkloadSelector,
}

/// What a matching policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A match permits the connection.
    Allow,
    /// A match refuses the connection, whatever else permits it.
    Deny,
}

/// One authorization policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// Its name on the wire.
    pub key: PolicyKey,
    /// Which workloads it applies to.
    pub scope: Scope,
    /// What a match does.
    pub action: Action,
    /// Any matching rule makes the policy match; without rules it never matches.
    pub rules: Vec<Rule>,
    /// Evaluated and reported, never enforced.
    pub dry_run: bool,
}

/// Matches when all of its clauses do; an empty list matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// AND-ed.
    pub clauses: Vec<Clause>,
}

/// Matches when any of its matches does; an empty list matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Clause {
    /// OR-ed.
    pub matches: Vec<Match>,
}

/// Fields AND-ed; values within a field OR-ed; `not_*` must match none. An empty field is no condition; a
/// match without any condition never matches (as in Istio's ztunnel: it is what is left after dropping
/// unsupported conditions).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Match {
    /// The namespace of the peer's identity.
    pub namespaces: Vec<StringMatch>,
    /// None of these may be the namespace of the peer's identity.
    pub not_namespaces: Vec<StringMatch>,
    /// The service account of the peer's identity.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// None of these may be the service account of the peer's identity.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The peer's identity as `<trust domain>/ns/<namespace>/sa/<service account>`.
    pub principals: Vec<StringMatch>,
    /// None of these may be the peer's identity.
    pub not_principals: Vec<StringMatch>,
    /// The peer's address.
    pub source_ips: Vec<IpBlock>,
    /// None of these may hold the peer's address.
    pub not_source_ips: Vec<IpBlock>,
    /// The application's address.
    pub destination_ips: Vec<IpBlock>,
    /// None of these may hold the application's address.
    pub not_destination_ips: Vec<IpBlock>,
    /// The application's port.
    pub destination_ports: Vec<u16>,
    /// None of these may be the application's port.
    pub not_destination_ports: Vec<u16>,
}

impl Match {
    /// Whether it has no condition at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A service account of one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccountMatch {
    /// The account's namespace.
    pub namespace: Arc<str>,
    /// The account's name.
    pub service_account: Arc<str>,
}

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// Equal to this.
    Exact(Arc<str>),
    /// Begins with this.
    Prefix(Arc<str>),
    /// Ends with this.
    Suffix(Arc<str>),
    /// Not empty.
    Presence,
}

impl StringMatch {
    /// Whether the text matches.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}

/// An address block: `10.0.0.0/8`, `2001:db8::/32`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpBlock(pub IpNet);

impl IpBlock {
    /// Whether the address lies in the block; v4-mapped addresses and blocks count as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.canonical().contains(&address.to_canonical())
    }

    /// The block as an IPv4 one where it lies within `::ffff:0:0/96`.
    pub fn canonical(&self) -> IpNet {
        let IpNet::V6(net) = self.0 else { return self.0 };
        match (net.addr().to_ipv4_mapped(), net.prefix_len().checked_sub(96)) {
            (Some(address), Some(length)) => Ipv4Net::new(address, length).map_or(self.0, IpNet::V4),
            _ => self.0,
        }
    }
}

impl From<IpAddr> for IpBlock {
    fn from(address: IpAddr) -> Self {
        Self(address.into())
    }
}

impl FromStr for IpBlock {
    type Err = ipnet::AddrParseError;

    /// An address or an address with a prefix length.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(address.into()),
            Err(_) => text.parse().map(Self),
        }
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
