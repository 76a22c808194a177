//! A small mesh for unit tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use ambit_core::mesh::{Change, Mesh};
use ambit_core::model::{
    Action, AppProtocol, Authorization, Clause, Health, LoadBalancing, Locality, Match, NetworkMode,
    PolicyKey, PortMapping, Rule, Scope, Service, ServiceKey, ServicePort, StringMatch, TunnelProtocol,
    Workload, WorkloadKind, WorkloadUid,
};

pub(crate) fn uid(name: &str) -> WorkloadUid {
    WorkloadUid(format!("Kubernetes//Pod/shop/{name}").into())
}

/// An enrolled workload of namespace `shop`, whose service account has its name.
pub(crate) fn workload(name: &str, addresses: &[&str]) -> Workload {
    Workload {
        uid: uid(name),
        name: name.into(),
        namespace: "shop".into(),
        service_account: name.into(),
        trust_domain: "cluster.local".parse().unwrap(),
        node: "node0".into(),
        cluster: "Kubernetes".into(),
        network: "".into(),
        network_mode: NetworkMode::Standard,
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
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
    ServiceKey { namespace: "shop".into(), hostname: format!("{name}.shop.svc.cluster.local").into() }
}

/// A service with port 80; endpoints listen on 8080.
pub(crate) fn service(name: &str, address: &str) -> Service {
    Service {
        key: service_key(name),
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
        ports: vec![ServicePort { port: 80, target_port: 8080, app_protocol: AppProtocol::default() }],
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: LoadBalancing::default(),
    }
}

/// The workload as an endpoint of the service.
pub(crate) fn endpoint_of(mut workload: Workload, service: &str) -> Workload {
    let mapping = PortMapping { service_port: 80, target_port: 8080 };
    workload.services.insert(service_key(service), vec![mapping]);
    workload
}

/// A policy of the namespace: `action` for the principals of these service accounts.
pub(crate) fn policy(name: &str, action: Action, accounts: &[&str]) -> Authorization {
    let principal = |account: &&str| StringMatch::Exact(format!("cluster.local/ns/shop/sa/{account}").into());
    let matches = vec![Match { principals: accounts.iter().map(principal).collect(), ..Match::default() }];
    Authorization {
        key: PolicyKey { namespace: "shop".into(), name: name.into() },
        scope: Scope::Namespace,
        action,
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        dry_run: false,
    }
}

pub(crate) fn mesh(changes: impl IntoIterator<Item = Change>) -> Mesh {
    let mut mesh = Mesh::new();
    mesh.apply(changes);
    mesh
}

pub(crate) fn put(workload: Workload) -> Change {
    Change::PutWorkload(Arc::new(workload))
}
