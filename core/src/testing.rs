//! Builders of resources for the tests of every crate: a new field is filled in here only.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{
    AppProtocol, ExcludedPorts, Health, LoadBalancing, Locality, NetworkMode, Origin, PortMapping, Service,
    ServiceKey, ServicePort, TrustDomain, TunnelProtocol, Workload, WorkloadKind, WorkloadUid,
};

/// The workload of a pod named `<namespace>/<name>`.
pub fn uid(pod: &str) -> WorkloadUid {
    WorkloadUid(format!("Kubernetes//Pod/{pod}").into())
}

/// An enrolled, ready pod, named `<namespace>/<name>`, with service account `default`.
pub fn pod(name: &str, addresses: &[&str]) -> Workload {
    let uid = uid(name);
    let (namespace, name) = halves(name);
    Workload {
        uid,
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
        require_waypoint: false,
        locality: Locality::default(),
        capacity: 1,
        kind: WorkloadKind::Pod,
        workload_name: name.into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        probe_ports: Vec::new(),
        excluded_ports: ExcludedPorts::default(),
        hostname: None,
        direct: true,
        same_node_tls: false,
        trust_domain_aliases: [].into(),
        origin: Origin::Kubernetes,
    }
}

/// The service `<namespace>/<name>`.
pub fn service_key(name: &str) -> ServiceKey {
    let (namespace, name) = halves(name);
    ServiceKey {
        namespace: namespace.into(),
        hostname: format!("{name}.{namespace}.svc.cluster.local").into(),
    }
}

/// A service with ports given as `(port, target port)`.
pub fn service(name: &str, addresses: &[&str], ports: &[(u16, u16)]) -> Service {
    let ports = ports.iter().map(|(port, target_port)| ServicePort {
        port: *port,
        target_port: *target_port,
        app_protocol: AppProtocol::Unknown,
    });
    Service {
        key: service_key(name),
        name: halves(name).1.into(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        ports: ports.collect(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: LoadBalancing::default(),
        virtual_addresses: false,
        shared_addresses: Vec::new(),
        origin: Origin::Kubernetes,
    }
}

/// Makes a workload an endpoint of a service, with the service's target ports.
pub fn behind(mut workload: Workload, service: &Service) -> Workload {
    let mapping = |port: &ServicePort| PortMapping { service_port: port.port, target_port: port.target_port };
    workload.services.insert(service.key.clone(), service.ports.iter().map(mapping).collect());
    workload
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is an address"))
}

fn halves(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or_else(|| panic!("{name} is <namespace>/<name>"))
}
