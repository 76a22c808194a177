//! Services.

use ambit_core::model::{
    Affinity, AppProtocol, Identity, LoadBalancing, LoadBalancingMode, LocalityScope, Service, ServiceKey,
    ServicePort,
};

use super::common::{
    decode_enum, decode_ip, decode_network_address, decode_origin, decode_port, decode_waypoint, each,
    encode_ip, encode_origin, encode_waypoint, network_address, required,
};
use super::{DecodeError, Problem, extension};
use crate::proto::ambit::v1::{ServiceExtension, WaypointExtension, service_extension};
use crate::proto::istio::workload as wire;
use crate::proto::istio::workload::load_balancing::{HealthPolicy, Mode, Scope};

/// The name of Ambit's extension in `Service.extensions`.
pub const SERVICE_EXTENSION: &str = "ambit.dev/service";

/// Encodes a service.
pub fn encode_service(service: &Service) -> wire::Service {
    let (waypoint, waypoint_extension) = encode_waypoint(service.waypoint.as_ref());
    wire::Service {
        name: service.name.to_string(),
        namespace: service.key.namespace.to_string(),
        hostname: service.key.hostname.to_string(),
        addresses: service.addresses.iter().copied().map(network_address).collect(),
        ports: service.ports.iter().copied().map(encode_port).collect(),
        subject_alt_names: service.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint,
        load_balancing: encode_load_balancing(&service.load_balancing),
        extensions: encode_extension(service, waypoint_extension).into_iter().collect(),
        // Not in the model.
        ip_families: wire::IpFamilies::Automatic.into(),
        canonical: false,
        ingress_use_waypoint: false,
        weighted_waypoints: Vec::new(),
        visibility: wire::service::Visibility::Public.into(),
    }
}

fn encode_port(port: ServicePort) -> wire::Port {
    wire::Port {
        service_port: port.port.into(),
        target_port: port.target_port.into(),
        app_protocol: match port.app_protocol {
            AppProtocol::Unknown => wire::AppProtocol::Unknown,
            AppProtocol::Http11 => wire::AppProtocol::Http11,
            AppProtocol::Http2 => wire::AppProtocol::Http2,
            AppProtocol::Grpc => wire::AppProtocol::Grpc,
            AppProtocol::Tcp => wire::AppProtocol::Tcp,
            AppProtocol::Tls => wire::AppProtocol::Tls,
        }
        .into(),
    }
}

/// `None` if all fields have their defaults.
fn encode_load_balancing(balancing: &LoadBalancing) -> Option<wire::LoadBalancing> {
    let scope = |scope: &LocalityScope| match scope {
        LocalityScope::Region => Scope::Region.into(),
        LocalityScope::Zone => Scope::Zone.into(),
        LocalityScope::Subzone => Scope::Subzone.into(),
        LocalityScope::Node => Scope::Node.into(),
        LocalityScope::Cluster => Scope::Cluster.into(),
        LocalityScope::Network => Scope::Network.into(),
    };
    let message = wire::LoadBalancing {
        routing_preference: balancing.routing_preference.iter().map(scope).collect(),
        mode: match balancing.mode {
            LoadBalancingMode::Unspecified => Mode::UnspecifiedMode,
            LoadBalancingMode::Strict => Mode::Strict,
            LoadBalancingMode::Failover => Mode::Failover,
            LoadBalancingMode::Passthrough => Mode::Passthrough,
        }
        .into(),
        health_policy: if balancing.allow_unhealthy {
            HealthPolicy::AllowAll
        } else {
            HealthPolicy::OnlyHealthy
        }
        .into(),
    };
    (message != wire::LoadBalancing::default()).then_some(message)
}

fn encode_extension(service: &Service, waypoint: Option<WaypointExtension>) -> Option<wire::Extension> {
    let affinity = match service.load_balancing.affinity {
        Affinity::None => service_extension::Affinity::None,
        Affinity::ClientIp => service_extension::Affinity::ClientIp,
    };
    let extension = ServiceExtension {
        virtual_addresses: service.virtual_addresses,
        affinity: affinity.into(),
        shared_addresses: service.shared_addresses.iter().copied().map(encode_ip).collect(),
        origin: encode_origin(&service.origin),
        waypoint,
    };
    extension::encode(SERVICE_EXTENSION, "ambit.v1.ServiceExtension", &extension)
}

/// Decodes a service.
pub fn decode_service(service: &wire::Service) -> Result<Service, DecodeError> {
    decode(service).map_err(|problem| problem.of(format!("{}/{}", service.namespace, service.hostname)))
}

fn decode(service: &wire::Service) -> Result<Service, Problem> {
    let extension: ServiceExtension =
        extension::decode(&service.extensions, SERVICE_EXTENSION, "ambit.v1.ServiceExtension")?;
    Ok(Service {
        key: ServiceKey {
            namespace: required("namespace", &service.namespace)?,
            hostname: required("hostname", &service.hostname)?,
        },
        name: service.name.as_str().into(),
        addresses: each("addresses", &service.addresses, decode_network_address)?,
        ports: each("ports", &service.ports, decode_service_port)?,
        subject_alt_names: decode_identities(&service.subject_alt_names)?,
        waypoint: decode_waypoint(service.waypoint.as_ref(), extension.waypoint.as_ref())?,
        load_balancing: LoadBalancing {
            affinity: decode_affinity(&extension)?,
            ..match &service.load_balancing {
                Some(balancing) => {
                    decode_load_balancing(balancing).map_err(|p| p.within("load_balancing"))?
                }
                None => LoadBalancing::default(),
            }
        },
        virtual_addresses: extension.virtual_addresses,
        shared_addresses: each("shared_addresses", &extension.shared_addresses, |field, bytes| {
            decode_ip(field, bytes)
        })
        .map_err(|problem| problem.within(&extension::field(SERVICE_EXTENSION)))?,
        origin: decode_origin(extension.origin),
    })
}

/// The identities among the names. DNS names are legal, but a tunnel's peer cannot present them.
fn decode_identities(names: &[String]) -> Result<Vec<Identity>, Problem> {
    let mut identities = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate().filter(|(_, name)| name.starts_with("spiffe://")) {
        let identity =
            name.parse().map_err(|e| Problem::new(format!("subject_alt_names[{index}]"), format!("{e}")))?;
        identities.push(identity);
    }
    Ok(identities)
}

fn decode_service_port(field: &str, port: &wire::Port) -> Result<ServicePort, Problem> {
    Ok(ServicePort {
        port: decode_port(|| format!("{field}.service_port"), port.service_port)?,
        target_port: decode_port(|| format!("{field}.target_port"), port.target_port)?,
        app_protocol: match decode_enum(&format!("{field}.app_protocol"), port.app_protocol)? {
            wire::AppProtocol::Unknown => AppProtocol::Unknown,
            wire::AppProtocol::Http11 => AppProtocol::Http11,
            wire::AppProtocol::Http2 => AppProtocol::Http2,
            wire::AppProtocol::Grpc => AppProtocol::Grpc,
            wire::AppProtocol::Tcp => AppProtocol::Tcp,
            wire::AppProtocol::Tls => AppProtocol::Tls,
        },
    })
}

fn decode_load_balancing(balancing: &wire::LoadBalancing) -> Result<LoadBalancing, Problem> {
    let scope = |field: &str, number: &i32| match decode_enum(field, *number)? {
        Scope::UnspecifiedScope => Err(Problem::new(field, "is not specified")),
        Scope::Region => Ok(LocalityScope::Region),
        Scope::Zone => Ok(LocalityScope::Zone),
        Scope::Subzone => Ok(LocalityScope::Subzone),
        Scope::Node => Ok(LocalityScope::Node),
        Scope::Cluster => Ok(LocalityScope::Cluster),
        Scope::Network => Ok(LocalityScope::Network),
    };
    Ok(LoadBalancing {
        routing_preference: each("routing_preference", &balancing.routing_preference, scope)?,
        mode: match decode_enum("mode", balancing.mode)? {
            Mode::UnspecifiedMode => LoadBalancingMode::Unspecified,
            Mode::Strict => LoadBalancingMode::Strict,
            Mode::Failover => LoadBalancingMode::Failover,
            Mode::Passthrough => LoadBalancingMode::Passthrough,
        },
        allow_unhealthy: match decode_enum("health_policy", balancing.health_policy)? {
            HealthPolicy::OnlyHealthy => false,
            HealthPolicy::AllowAll => true,
        },
        affinity: Affinity::None,
    })
}

fn decode_affinity(extension: &ServiceExtension) -> Result<Affinity, Problem> {
    let field = format!("{}.affinity", extension::field(SERVICE_EXTENSION));
    match decode_enum(&field, extension.affinity)? {
        service_extension::Affinity::None => Ok(Affinity::None),
        service_extension::Affinity::ClientIp => Ok(Affinity::ClientIp),
    }
}
