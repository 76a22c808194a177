//! Kubernetes' own kinds: Namespace, Node, Pod, Service. Their schemas are Kubernetes', so fields that are
//! not known here are none of our business; those that are used are checked.

use std::net::IpAddr;

use ambit_core::derive::{
    ContainerPort, Metadata, Namespace, Node, Owner, Phase, Pod, PortRef, Service, ServicePort,
    TrafficDistribution, Transport,
};
use ambit_core::model::Affinity;
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::Mistake;
use crate::field::Report;
use crate::metadata;

/// Istio's annotation for `spec.trafficDistribution`.
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

pub(crate) fn namespace(namespace: api::Namespace) -> Result<Namespace, Vec<Mistake>> {
    let mut report = Report::default();
    let metadata = metadata::in_cluster(&mut report, namespace.metadata);
    if !metadata.name.is_empty() {
        report.label("metadata.name", &metadata.name);
    }
    let traffic_distribution = distribution_annotation(&metadata);
    report.finish(Namespace { metadata, traffic_distribution })
}

pub(crate) fn node(node: api::Node) -> Result<Node, Vec<Mistake>> {
    let mut report = Report::default();
    let metadata = metadata::in_cluster(&mut report, node.metadata);
    report.finish(Node { metadata })
}

pub(crate) fn pod(pod: api::Pod) -> Result<Pod, Vec<Mistake>> {
    let mut report = Report::default();
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let owner = owner(&pod);
    let metadata = metadata::in_namespace(&mut report, pod.metadata);
    let Some(spec) = pod.spec else {
        report.add("spec", "missing");
        return report.finish(Pod::default());
    };
    let service_account = spec.service_account_name.or(spec.service_account).unwrap_or_default();
    if !service_account.is_empty() {
        report.name("spec.serviceAccountName", &service_account);
    }
    let (ports, probes) = containers(&mut report, spec.init_containers.as_deref(), &spec.containers);
    let status = pod.status.unwrap_or_default();
    let pod = Pod {
        metadata,
        service_account,
        node: spec.node_name.unwrap_or_default(),
        host_network: spec.host_network.unwrap_or_default(),
        owner,
        ports,
        probes,
        phase: phase(&mut report, status.phase.as_deref()),
        ready: ready(&status),
        terminating,
        addresses: pod_addresses(&mut report, status),
    };
    report.finish(pod)
}

fn owner(pod: &api::Pod) -> Option<Owner> {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    Some(Owner { kind: owner.kind.clone(), name: owner.name.clone() })
}

fn phase(report: &mut Report, phase: Option<&str>) -> Phase {
    match phase {
        None | Some("" | "Pending") => Phase::Pending,
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some("Unknown") => Phase::Unknown,
        Some(other) => {
            report.add("status.phase", format_args!("{other:?} is not a phase"));
            Phase::Unknown
        }
    }
}

fn ready(status: &api::PodStatus) -> bool {
    status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn pod_addresses(report: &mut Report, status: api::PodStatus) -> Vec<IpAddr> {
    let listed = status.pod_ips.unwrap_or_default();
    if listed.is_empty() {
        let single = status.pod_ip.filter(|ip| !ip.is_empty());
        return single.and_then(|ip| report.address("status.podIP", &ip)).into_iter().collect();
    }
    let addresses = listed.iter().enumerate();
    addresses
        .filter_map(|(index, ip)| report.address(format_args!("status.podIPs[{index}].ip"), &ip.ip))
        .collect()
}

/// Ports and probes of the pod's containers and sidecars (init containers that restart). HTTP hooks count as
/// probes: the kubelet calls them too.
fn containers(
    report: &mut Report,
    init: Option<&[api::Container]>,
    main: &[api::Container],
) -> (Vec<ContainerPort>, Vec<PortRef>) {
    let sidecar = |container: &api::Container| container.restart_policy.as_deref() == Some("Always");
    let init = init.unwrap_or_default().iter().enumerate();
    let init = init.filter(|(_, container)| sidecar(container)).map(|(i, c)| ("initContainers", i, c));
    let main = main.iter().enumerate().map(|(i, c)| ("containers", i, c));
    let (mut ports, mut probes) = (Vec::new(), Vec::new());
    for (list, index, container) in init.chain(main) {
        let field = format!("spec.{list}[{index}]");
        for (at, port) in container.ports.iter().flatten().enumerate() {
            let field = format!("{field}.ports[{at}]");
            let transport = transport(report, &format!("{field}.protocol"), port.protocol.as_deref());
            let number = report.port(format_args!("{field}.containerPort"), port.container_port);
            if let (Some(port_number), Some(transport)) = (number, transport) {
                let name = port.name.clone().unwrap_or_default();
                ports.push(ContainerPort { name, port: port_number, transport });
            }
        }
        for (name, probe) in [
            ("livenessProbe", &container.liveness_probe),
            ("readinessProbe", &container.readiness_probe),
            ("startupProbe", &container.startup_probe),
        ] {
            let Some(probe) = probe else { continue };
            if let Some(port) = probe_port(report, &format!("{field}.{name}"), container, probe)
                && !probes.contains(&port)
            {
                probes.push(port);
            }
        }
        let hooks = container.lifecycle.as_ref();
        for (name, hook) in [
            ("postStart", hooks.and_then(|hooks| hooks.post_start.as_ref())),
            ("preStop", hooks.and_then(|hooks| hooks.pre_stop.as_ref())),
        ] {
            let Some(http) = hook.and_then(|hook| hook.http_get.as_ref()) else { continue };
            let field = format!("{field}.lifecycle.{name}.httpGet.port");
            if let Some(port) = http_port(report, &field, container, http)
                && !probes.contains(&port)
            {
                probes.push(port);
            }
        }
    }
    (ports, probes)
}

/// The port of a probe. As in the kubelet, a name is one of its own container's ports. A probe of another
/// host has none.
fn probe_port(
    report: &mut Report,
    field: &str,
    container: &api::Container,
    probe: &api::Probe,
) -> Option<PortRef> {
    if let Some(http) = &probe.http_get {
        http_port(report, &format!("{field}.httpGet.port"), container, http)
    } else if let Some(tcp) = &probe.tcp_socket {
        let port = Some(&tcp.port).filter(|_| !is_elsewhere(tcp.host.as_deref()))?;
        own_port(report, &format!("{field}.tcpSocket.port"), container, port)
    } else {
        let port = IntOrString::Int(probe.grpc.as_ref()?.port);
        own_port(report, &format!("{field}.grpc.port"), container, &port)
    }
}

fn http_port(
    report: &mut Report,
    field: &str,
    container: &api::Container,
    http: &api::HTTPGetAction,
) -> Option<PortRef> {
    let port = Some(&http.port).filter(|_| !is_elsewhere(http.host.as_deref()))?;
    own_port(report, field, container, port)
}

fn is_elsewhere(host: Option<&str>) -> bool {
    host.is_some_and(|host| !host.is_empty())
}

fn own_port(
    report: &mut Report,
    field: &str,
    container: &api::Container,
    port: &IntOrString,
) -> Option<PortRef> {
    match port_ref(report, field, port)? {
        PortRef::Name(name) => {
            let mut ports = container.ports.iter().flatten();
            let own = ports.find(|port| port.name.as_deref() == Some(&name));
            let number = own.and_then(|port| u16::try_from(port.container_port).ok());
            Some(number.map_or(PortRef::Name(name), PortRef::Number))
        }
        number @ PortRef::Number(_) => Some(number),
    }
}

pub(crate) fn service(service: api::Service) -> Result<Service, Vec<Mistake>> {
    let mut report = Report::default();
    let metadata = metadata::in_namespace(&mut report, service.metadata);
    if metadata.name.contains('.') {
        report.label("metadata.name", &metadata.name);
    }
    let Some(spec) = service.spec else {
        report.add("spec", "missing");
        return report.finish(Service::default());
    };
    let external_name = match spec.type_.as_deref() {
        None | Some("" | "ClusterIP" | "NodePort" | "LoadBalancer") => false,
        Some("ExternalName") => true,
        Some(other) => {
            report.add("spec.type", format_args!("{other:?} is not a type of service"));
            false
        }
    };
    let node_local = match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            report.add("spec.internalTrafficPolicy", format_args!("{other:?} is neither Cluster nor Local"));
            false
        }
    };
    let ports = spec.ports.iter().flatten().enumerate();
    let service = Service {
        traffic_distribution: traffic_distribution(
            &mut report,
            spec.traffic_distribution.as_deref(),
            &metadata,
        ),
        metadata,
        external_name,
        cluster_ips: cluster_ips(&mut report, spec.cluster_ips.as_deref(), spec.cluster_ip.as_deref()),
        external_ips: external_ips(&mut report, spec.external_ips.as_deref(), service.status.as_ref()),
        selector: spec.selector.clone().unwrap_or_default(),
        ports: ports.filter_map(|(index, port)| service_port(&mut report, index, port)).collect(),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
        node_local,
        affinity: affinity(&mut report, &spec),
    };
    report.finish(service)
}

/// The field takes precedence over Istio's annotation, which is for clusters whose Service has no such field.
fn traffic_distribution(
    report: &mut Report,
    value: Option<&str>,
    metadata: &Metadata,
) -> TrafficDistribution {
    match value {
        None | Some("") => distribution_annotation(metadata),
        Some("PreferClose" | "PreferSameZone") => TrafficDistribution::PreferSameZone,
        Some("PreferSameNode") => TrafficDistribution::PreferSameNode,
        Some(other) => {
            let known = "PreferClose, PreferSameZone or PreferSameNode";
            report.add("spec.trafficDistribution", format_args!("{other:?} is none of {known}"));
            TrafficDistribution::Unset
        }
    }
}

/// Istio's annotation, on a Service or a Namespace. As in Istio, its case does not matter and unknown values
/// are ignored.
fn distribution_annotation(metadata: &Metadata) -> TrafficDistribution {
    let value = metadata.annotations.get(TRAFFIC_DISTRIBUTION).map(|value| value.to_ascii_lowercase());
    match value.as_deref() {
        Some("preferclose" | "prefersamezone") => TrafficDistribution::PreferSameZone,
        Some("prefersamenode") => TrafficDistribution::PreferSameNode,
        Some("any") => TrafficDistribution::Any,
        _ => TrafficDistribution::Unset,
    }
}

/// The timeout is checked and has no effect: affinity is a function of the client and the endpoints.
fn affinity(report: &mut Report, spec: &api::ServiceSpec) -> Affinity {
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    if let Some(seconds) = client_ip.and_then(|client_ip| client_ip.timeout_seconds)
        && !(1..=86_400).contains(&seconds)
    {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        report.add(field, format_args!("{seconds} is not between 1 and 86400"));
    }
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => Affinity::None,
        Some("ClientIP") => Affinity::ClientIp,
        Some(other) => {
            report.add("spec.sessionAffinity", format_args!("{other:?} is neither ClientIP nor None"));
            Affinity::None
        }
    }
}

/// `None` means headless.
fn cluster_ips(report: &mut Report, listed: Option<&[String]>, single: Option<&str>) -> Vec<IpAddr> {
    let is_set = |ip: &str| !ip.is_empty() && ip != "None";
    let listed = listed.unwrap_or_default();
    if listed.is_empty() {
        let single = single.filter(|ip| is_set(ip));
        return single.and_then(|ip| report.address("spec.clusterIP", ip)).into_iter().collect();
    }
    let listed = listed.iter().enumerate().filter(|(_, ip)| is_set(ip));
    listed.filter_map(|(i, ip)| report.address(format_args!("spec.clusterIPs[{i}]"), ip)).collect()
}

fn external_ips(
    report: &mut Report,
    listed: Option<&[String]>,
    status: Option<&api::ServiceStatus>,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (index, ip) in listed.unwrap_or_default().iter().enumerate() {
        addresses.extend(report.address(format_args!("spec.externalIPs[{index}]"), ip));
    }
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    for (index, entry) in ingress.iter().enumerate() {
        // Connections to such an address go to the load balancer's proxy.
        if entry.ip_mode.as_deref() == Some("Proxy") {
            continue;
        }
        let Some(ip) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        addresses.extend(report.address(format_args!("status.loadBalancer.ingress[{index}].ip"), ip));
    }
    addresses
}

fn service_port(report: &mut Report, index: usize, port: &api::ServicePort) -> Option<ServicePort> {
    let field = format!("spec.ports[{index}]");
    let number = report.port(format_args!("{field}.port"), port.port);
    let transport = transport(report, &format!("{field}.protocol"), port.protocol.as_deref());
    let target = match &port.target_port {
        // Zero means not set.
        None | Some(IntOrString::Int(0)) => number.map(PortRef::Number),
        Some(target) => port_ref(report, &format!("{field}.targetPort"), target),
    };
    Some(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        port: number?,
        target: target?,
        transport: transport?,
        app_protocol: port.app_protocol.clone().unwrap_or_default(),
    })
}

fn port_ref(report: &mut Report, field: &str, port: &IntOrString) -> Option<PortRef> {
    match port {
        IntOrString::Int(number) => report.port(field, *number).map(PortRef::Number),
        // A port's name has a letter (RFC 6335), so digits are a quoted number.
        IntOrString::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            report.port_text(field, text).map(PortRef::Number)
        }
        IntOrString::String(name) => Some(PortRef::Name(name.clone())),
    }
}

pub(crate) fn transport(report: &mut Report, field: &str, protocol: Option<&str>) -> Option<Transport> {
    match protocol {
        None | Some("" | "TCP") => Some(Transport::Tcp),
        Some("UDP") => Some(Transport::Udp),
        Some("SCTP") => Some(Transport::Sctp),
        Some(other) => {
            report.add(field, format_args!("{other:?} is none of TCP, UDP, SCTP"));
            None
        }
    }
}
