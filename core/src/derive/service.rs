//! Kubernetes Services → services, and where their endpoints listen.
//!
//! Entry points: [`derive()`] and [`mappings`].

use std::net::IpAddr;

use super::object::{Namespace, PortRef, Service, ServicePort, TrafficDistribution, Transport};
use super::settings::Settings;
use crate::model::{
    self, AppProtocol, LoadBalancing, LoadBalancingMode, LocalityScope, Origin, PortMapping, ServiceKey,
    Waypoint,
};

/// The service's name on the wire.
pub(super) fn key(namespace: &str, name: &str, settings: &Settings) -> ServiceKey {
    ServiceKey {
        namespace: namespace.into(),
        hostname: format!("{name}.{namespace}.svc.{}", settings.domain).into(),
    }
}

/// The service; `None` for an ExternalName, which is only a DNS alias.
pub(super) fn derive(
    service: &Service,
    namespace: Option<&Namespace>,
    waypoint: Option<Waypoint>,
    settings: &Settings,
) -> Option<model::Service> {
    if service.external_name {
        return None;
    }
    let metadata = &service.metadata;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in service.cluster_ips.iter().chain(&service.external_ips).map(IpAddr::to_canonical) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Some(model::Service {
        key: key(&metadata.namespace, &metadata.name, settings),
        name: metadata.name.as_str().into(),
        addresses,
        ports: tcp_ports(service).map(port).collect(),
        subject_alt_names: Vec::new(),
        waypoint,
        load_balancing: load_balancing(service, namespace),
        virtual_addresses: false,
        shared_addresses: shared_addresses(service),
        origin: Origin::Kubernetes,
    })
}

/// The addresses that others may have too: kube-proxy takes only the service's ports there.
fn shared_addresses(service: &Service) -> Vec<IpAddr> {
    let mut shared: Vec<IpAddr> = service.external_ips.iter().map(IpAddr::to_canonical).collect();
    shared.retain(|address| service.cluster_ips.iter().all(|own| own.to_canonical() != *address));
    shared.sort_unstable();
    shared.dedup();
    shared
}

/// Where a workload listens for the ports of a service. `named` looks up a port by name; the workload does
/// not serve a port whose name it does not have.
pub(super) fn mappings(service: &Service, named: impl Fn(&str) -> Option<u16>) -> Vec<PortMapping> {
    let mapping = |port: &ServicePort| {
        let target_port = match &port.target {
            PortRef::Number(number) => *number,
            PortRef::Name(name) => named(name)?,
        };
        Some(PortMapping { service_port: port.port, target_port })
    };
    tcp_ports(service).filter_map(mapping).collect()
}

/// Where a workload entry listens for the ports of a service: its own map by the name of the service's port
/// comes first, also where `targetPort` is a number, as in Istio. `named` looks up a port in that map.
pub(super) fn entry_mappings(service: &Service, named: impl Fn(&str) -> Option<u16>) -> Vec<PortMapping> {
    let mapping = |port: &ServicePort| {
        let by_target = || match &port.target {
            PortRef::Number(number) => Some(*number),
            PortRef::Name(name) => named(name),
        };
        let target_port = named(&port.name).or_else(by_target)?;
        Some(PortMapping { service_port: port.port, target_port })
    };
    tcp_ports(service).filter_map(mapping).collect()
}

pub(super) fn tcp_ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    service.ports.iter().filter(|port| port.transport == Transport::Tcp)
}

fn port(port: &ServicePort) -> model::ServicePort {
    let target_port = match port.target {
        PortRef::Number(number) => number,
        PortRef::Name(_) => 0,
    };
    model::ServicePort { port: port.port, target_port, app_protocol: app_protocol(port) }
}

/// `appProtocol`, or else the first part of the port's name, as Istio reads them.
pub(super) fn app_protocol(port: &ServicePort) -> AppProtocol {
    let protocol = if port.app_protocol.is_empty() {
        port.name.split('-').next().unwrap_or_default()
    } else {
        port.app_protocol.as_str()
    };
    match protocol.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" | "kubernetes.io/wss" => AppProtocol::Tls,
        "tcp" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

fn load_balancing(service: &Service, namespace: Option<&Namespace>) -> LoadBalancing {
    use LocalityScope::{Network, Node, Region, Subzone, Zone};
    let distribution = match (service.traffic_distribution, namespace) {
        (TrafficDistribution::Unset, Some(namespace)) => namespace.traffic_distribution,
        (own, _) => own,
    };
    let (mode, routing_preference) = match (service.node_local, distribution) {
        (true, _) => (LoadBalancingMode::Strict, vec![Node]),
        (false, TrafficDistribution::Unset | TrafficDistribution::Any) => {
            (LoadBalancingMode::Unspecified, Vec::new())
        }
        (false, TrafficDistribution::PreferSameZone) => {
            (LoadBalancingMode::Failover, vec![Network, Region, Zone])
        }
        (false, TrafficDistribution::PreferSameNode) => {
            (LoadBalancingMode::Failover, vec![Network, Region, Zone, Subzone, Node])
        }
    };
    LoadBalancing {
        routing_preference,
        mode,
        allow_unhealthy: service.publish_not_ready,
        affinity: service.affinity,
    }
}
