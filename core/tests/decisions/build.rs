//! Short ways to build nouns.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ambit_core::mesh::{Change, Mesh};
use ambit_core::model::{
    Action, Authorization, Clause, Identity, IpBlock, Match, PolicyKey, Rule, Scope, Service,
    ServiceAccountMatch, StringMatch, TrustDomain, Workload,
};
use ambit_core::ownership::{self, Captured};
pub(crate) use ambit_core::testing::{behind, pod, service, service_key, uid};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is an address"))
}

pub(crate) fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is a socket address"))
}

/// `spiffe://cluster.local/ns/<namespace>/sa/<account>` from `<namespace>/<account>`.
pub(crate) fn identity(text: &str) -> Identity {
    let (namespace, account) = text.split_once('/').expect("namespace/account");
    Identity {
        trust_domain: TrustDomain::default(),
        namespace: namespace.into(),
        service_account: account.into(),
    }
}

pub(crate) fn mesh(
    workloads: impl IntoIterator<Item = Workload>,
    services: impl IntoIterator<Item = Service>,
    policies: impl IntoIterator<Item = Authorization>,
) -> Mesh {
    let mut mesh = Mesh::new();
    mesh.apply(policies.into_iter().map(|policy| Change::PutPolicy(Arc::new(policy))));
    mesh.apply(services.into_iter().map(|service| Change::PutService(Arc::new(service))));
    mesh.apply(workloads.into_iter().map(|workload| Change::PutWorkload(Arc::new(workload))));
    mesh
}

/// Whether any connection to the address is captured.
pub(crate) fn captures(mesh: &Mesh, address: IpAddr) -> bool {
    ownership::captured(mesh, address) != Captured::NOTHING
}

pub(crate) fn policy_key(text: &str) -> PolicyKey {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    PolicyKey { namespace: namespace.into(), name: name.into() }
}

/// A policy for its whole namespace, `<namespace>/<name>`.
pub(crate) fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Authorization {
    Authorization { key: policy_key(name), scope: Scope::Namespace, action, rules, dry_run: false }
}

pub(crate) fn allow(name: &str, rules: Vec<Rule>) -> Authorization {
    policy(name, Action::Allow, rules)
}

pub(crate) fn deny(name: &str, rules: Vec<Rule>) -> Authorization {
    policy(name, Action::Deny, rules)
}

/// A rule of clauses of matches.
pub(crate) fn rule<const N: usize>(clauses: [Vec<Match>; N]) -> Rule {
    Rule { clauses: clauses.into_iter().map(|matches| Clause { matches }).collect() }
}

/// A rule of one match.
pub(crate) fn only(m: Match) -> Rule {
    rule([vec![m]])
}

/// What a value of a match is written as in tests.
pub(crate) trait Written {
    fn from_text(text: &str) -> Self;
}

impl Written for StringMatch {
    fn from_text(text: &str) -> Self {
        if text == "*" {
            Self::Presence
        } else if let Some(suffix) = text.strip_prefix('*') {
            Self::Suffix(suffix.into())
        } else if let Some(prefix) = text.strip_suffix('*') {
            Self::Prefix(prefix.into())
        } else {
            Self::Exact(text.into())
        }
    }
}

impl Written for ServiceAccountMatch {
    fn from_text(text: &str) -> Self {
        let (namespace, account) = text.split_once('/').expect("namespace/account");
        Self { namespace: namespace.into(), service_account: account.into() }
    }
}

impl Written for IpBlock {
    fn from_text(text: &str) -> Self {
        Self::from_str(text).expect("a block")
    }
}

impl Written for u16 {
    fn from_text(text: &str) -> Self {
        text.parse().expect("a port")
    }
}

/// Changes a match, for [`m!`].
pub(crate) trait With {
    fn with(self, change: impl FnOnce(&mut Self)) -> Self;
}

impl With for Match {
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// `m! { principals: ["*"], destination_ports: ["80"] }`
macro_rules! m {
    ($($field:ident: [$($value:expr),* $(,)?]),* $(,)?) => {
        ambit_core::model::Match::default()
            $(.with(|m| m.$field = vec![$($crate::build::Written::from_text($value)),*]))*
    };
}
pub(crate) use m;
