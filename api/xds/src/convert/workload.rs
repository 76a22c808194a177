//! Workloads.

use std::collections::BTreeMap;
use std::sync::Arc;

use ambit_core::model::{
    ExcludedPorts, Health, Locality, NetworkMode, PortMapping, ServiceKey, TrustDomain, TunnelProtocol,
    Workload, WorkloadKind, WorkloadUid,
};

use super::common::{
    decode_enum, decode_ip, decode_origin, decode_policy_key, decode_port, decode_service_key,
    decode_waypoint, each, encode_ip, encode_origin, encode_waypoint, required,
};
use super::{DecodeError, Problem, extension};
use crate::proto::ambit::v1::{WaypointExtension, WorkloadExtension};
use crate::proto::istio::workload as wire;

/// The name of Ambit's extension in `Workload.extensions`.
pub const WORKLOAD_EXTENSION: &str = "ambit.dev/workload";

/// Encodes a workload.
pub fn encode_workload(workload: &Workload) -> wire::Workload {
    let (waypoint, waypoint_extension) = encode_waypoint(workload.waypoint.as_ref());
    wire::Workload {
        uid: workload.uid.to_string(),
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        addresses: workload.addresses.iter().copied().map(encode_ip).collect(),
        network: workload.network.to_string(),
        tunnel_protocol: match workload.protocol {
            TunnelProtocol::None => wire::TunnelProtocol::None,
            TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone,
        }
        .into(),
        trust_domain: workload.trust_domain.to_string(),
        service_account: workload.service_account.to_string(),
        waypoint,
        node: workload.node.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: match workload.kind {
            WorkloadKind::Deployment => wire::WorkloadType::Deployment,
            WorkloadKind::CronJob => wire::WorkloadType::Cronjob,
            WorkloadKind::Pod => wire::WorkloadType::Pod,
            WorkloadKind::Job => wire::WorkloadType::Job,
        }
        .into(),
        workload_name: workload.workload_name.to_string(),
        services: workload
            .services
            .iter()
            .map(|(key, ports)| (key.to_string(), encode_ports(ports)))
            .collect(),
        authorization_policies: workload.policies.iter().map(ToString::to_string).collect(),
        status: match workload.health {
            Health::Healthy => wire::WorkloadStatus::Healthy,
            Health::Unhealthy | Health::Draining => wire::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: workload.cluster.to_string(),
        locality: (workload.locality != Locality::default()).then(|| wire::Locality {
            region: workload.locality.region.to_string(),
            zone: workload.locality.zone.to_string(),
            subzone: workload.locality.subzone.to_string(),
        }),
        network_mode: match workload.network_mode {
            NetworkMode::Standard => wire::NetworkMode::Standard,
            NetworkMode::HostNetwork => wire::NetworkMode::HostNetwork,
        }
        .into(),
        capacity: (workload.capacity != 1).then_some(workload.capacity),
        extensions: encode_extension(workload, waypoint_extension).into_iter().collect(),
        hostname: workload.hostname.as_deref().unwrap_or_default().to_owned(),
        // Not in the model.
        network_gateway: None,
        native_tunnel: false,
        application_tunnel: None,
    }
}

fn encode_ports(ports: &[PortMapping]) -> wire::PortList {
    let port = |p: &PortMapping| wire::Port {
        service_port: p.service_port.into(),
        target_port: p.target_port.into(),
        app_protocol: wire::AppProtocol::Unknown.into(),
    };
    wire::PortList { ports: ports.iter().map(port).collect() }
}

fn encode_extension(workload: &Workload, waypoint: Option<WaypointExtension>) -> Option<wire::Extension> {
    let excluded = &workload.excluded_ports;
    let extension = WorkloadExtension {
        probe_ports: workload.probe_ports.iter().copied().map(Into::into).collect(),
        direct_disabled: !workload.direct,
        same_node_tls: workload.same_node_tls,
        trust_domain_aliases: workload.trust_domain_aliases.iter().map(ToString::to_string).collect(),
        draining: workload.health == Health::Draining,
        excluded_inbound_ports: excluded.inbound.iter().copied().map(Into::into).collect(),
        excluded_outbound_ports: excluded.outbound.iter().copied().map(Into::into).collect(),
        origin: encode_origin(&workload.origin),
        no_identity: !workload.has_identity(),
        waypoint,
        require_waypoint: workload.require_waypoint,
    };
    extension::encode(WORKLOAD_EXTENSION, "ambit.v1.WorkloadExtension", &extension)
}

/// Decodes a workload.
pub fn decode_workload(workload: &wire::Workload) -> Result<Workload, DecodeError> {
    let resource = if workload.uid.is_empty() { &workload.name } else { &workload.uid };
    decode(workload).map_err(|problem| problem.of(resource))
}

fn decode(workload: &wire::Workload) -> Result<Workload, Problem> {
    let extension: WorkloadExtension =
        extension::decode(&workload.extensions, WORKLOAD_EXTENSION, "ambit.v1.WorkloadExtension")?;
    Ok(Workload {
        uid: WorkloadUid(required("uid", &workload.uid)?),
        name: workload.name.as_str().into(),
        namespace: required("namespace", &workload.namespace)?,
        service_account: match workload.service_account.as_str() {
            "" if !extension.no_identity => "default".into(),
            account => account.into(),
        },
        trust_domain: decode_trust_domain(&workload.trust_domain)?,
        node: workload.node.as_str().into(),
        cluster: workload.cluster_id.as_str().into(),
        network: workload.network.as_str().into(),
        network_mode: match decode_enum("network_mode", workload.network_mode)? {
            wire::NetworkMode::Standard => NetworkMode::Standard,
            wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        },
        addresses: each("addresses", &workload.addresses, |field, bytes| decode_ip(field, bytes))?,
        protocol: match decode_enum("tunnel_protocol", workload.tunnel_protocol)? {
            wire::TunnelProtocol::Hbone => TunnelProtocol::Hbone,
            // A sidecar's own mutual TLS is not supported: the peer gets plaintext and refuses it if it must.
            wire::TunnelProtocol::None | wire::TunnelProtocol::LegacyIstioMtls => TunnelProtocol::None,
        },
        health: match decode_enum("status", workload.status)? {
            wire::WorkloadStatus::Healthy => Health::Healthy,
            wire::WorkloadStatus::Unhealthy if extension.draining => Health::Draining,
            wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
        },
        services: decode_services(&workload.services)?,
        policies: each("authorization_policies", &workload.authorization_policies, |field, key| {
            decode_policy_key(field, key)
        })?,
        waypoint: decode_waypoint(workload.waypoint.as_ref(), extension.waypoint.as_ref())?,
        require_waypoint: extension.require_waypoint,
        locality: workload.locality.as_ref().map_or_else(Locality::default, |l| Locality {
            region: l.region.as_str().into(),
            zone: l.zone.as_str().into(),
            subzone: l.subzone.as_str().into(),
        }),
        capacity: workload.capacity.unwrap_or(1),
        kind: match decode_enum("workload_type", workload.workload_type)? {
            wire::WorkloadType::Deployment => WorkloadKind::Deployment,
            wire::WorkloadType::Cronjob => WorkloadKind::CronJob,
            wire::WorkloadType::Pod => WorkloadKind::Pod,
            wire::WorkloadType::Job => WorkloadKind::Job,
        },
        workload_name: workload.workload_name.as_str().into(),
        canonical_name: workload.canonical_name.as_str().into(),
        canonical_revision: workload.canonical_revision.as_str().into(),
        probe_ports: decode_ports("probe_ports", &extension.probe_ports)?,
        excluded_ports: ExcludedPorts {
            inbound: decode_ports("excluded_inbound_ports", &extension.excluded_inbound_ports)?,
            outbound: decode_ports("excluded_outbound_ports", &extension.excluded_outbound_ports)?,
        },
        hostname: Some(workload.hostname.as_str()).filter(|name| !name.is_empty()).map(Into::into),
        direct: !extension.direct_disabled,
        same_node_tls: extension.same_node_tls,
        trust_domain_aliases: decode_aliases(&extension)?,
        origin: decode_origin(extension.origin),
    })
}

/// Istio omits the default.
fn decode_trust_domain(text: &str) -> Result<TrustDomain, Problem> {
    if text.is_empty() {
        return Ok(TrustDomain::default());
    }
    text.parse().map_err(|e| Problem::new("trust_domain", format!("{e}")))
}

fn decode_services(
    services: &BTreeMap<String, wire::PortList>,
) -> Result<BTreeMap<ServiceKey, Vec<PortMapping>>, Problem> {
    let mut decoded = BTreeMap::new();
    for (name, list) in services {
        let outer = format!("services[{name}]");
        let key = decode_service_key(&outer, name)?;
        let ports = each("ports", &list.ports, |field, port| {
            Ok(PortMapping {
                service_port: decode_port(|| format!("{field}.service_port"), port.service_port)?,
                target_port: decode_port(|| format!("{field}.target_port"), port.target_port)?,
            })
        });
        decoded.insert(key, ports.map_err(|problem| problem.within(&outer))?);
    }
    Ok(decoded)
}

fn decode_aliases(extension: &WorkloadExtension) -> Result<Arc<[TrustDomain]>, Problem> {
    let parse = |field: &str, text: &String| text.parse().map_err(|e| Problem::new(field, format!("{e}")));
    each("trust_domain_aliases", &extension.trust_domain_aliases, parse)
        .map(Into::into)
        .map_err(|problem| problem.within(&extension::field(WORKLOAD_EXTENSION)))
}

fn decode_ports<T: FromIterator<u16>>(field: &str, ports: &[u32]) -> Result<T, Problem> {
    each(field, ports, |at, port| decode_port(|| at.to_owned(), *port))
        .map(|ports: Vec<u16>| ports.into_iter().collect())
        .map_err(|problem| problem.within(&extension::field(WORKLOAD_EXTENSION)))
}
