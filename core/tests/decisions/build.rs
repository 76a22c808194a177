//! Short ways to build nouns.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ambit_core::mesh::{Change, Mesh};
use ambit_core::model::{
    Action, Authorization, Clause, Health, Identity, IpBlock, LoadBalancing, Locality, Match, NetworkMode,
    PolicyKey, PortMapping, Rule, Scope, Service, ServiceAccountMatch, ServiceKey, ServicePort, StringMatch,
    TrustDomain, TunnelProtocol, Workload, WorkloadKind, WorkloadUid,
};

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

pub(crate) fn uid(pod: &str) -> WorkloadUid {
    WorkloadUid(format!("Kubernetes//Pod/{pod}").into())
}

/// An enrolled, ready pod, named `<namespace>/<name>`.
pub(crate) fn pod(name: &str, addresses: &[&str]) -> Workload {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    Workload {
        uid: uid(&format!("{namespace}/{name}")),
        name: name.into(),
        namespace: namespace.into(),
        service_account: "default".into(),
        trust_domain: TrustDomain::default(),
        node: "node-a".into(),
        cluster: "Kubernetes".into(),
        network: "".into(),
        network_mode: NetworkMode::Standard,
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        protocol: TunnelProtocol::Hbone,
        health: Health::Healthy,
        services: BTreeMap::new(),
        policies: Vec::new(),
        waypoint: None,
        locality: Locality::default(),
        capacity: 1,
        kind: WorkloadKind::Pod,
        workload_name: name.into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        probe_ports: Vec::new(),
    }
}

pub(crate) fn service_key(name: &str) -> ServiceKey {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    ServiceKey {
        namespace: namespace.into(),
        hostname: format!("{name}.{namespace}.svc.cluster.local").into(),
    }
}

/// A service with ports given as `(port, target port)`.
pub(crate) fn service(name: &str, addresses: &[&str], ports: &[(u16, u16)]) -> Service {
    let key = service_key(name);
    let ports = ports.iter().map(|(port, target_port)| ServicePort {
        port: *port,
        target_port: *target_port,
        app_protocol: ambit_core::model::AppProtocol::Unknown,
    });
    Service {
        name: name.split('/').nth(1).expect("namespace/name").into(),
        key,
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        ports: ports.collect(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: LoadBalancing::default(),
    }
}

/// Puts a workload behind a service, listening as the service says.
pub(crate) fn behind(mut workload: Workload, service: &Service) -> Workload {
    let mappings = service
        .ports
        .iter()
        .map(|port| PortMapping { service_port: port.port, target_port: port.target_port });
    workload.services.insert(service.key.clone(), mappings.collect());
    workload
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
