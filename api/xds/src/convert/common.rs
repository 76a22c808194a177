//! What several messages share: addresses, ports, enums, keys, waypoints.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ambit_core::model::{
    Claim, Exported, Origin, PolicyKey, ServiceKey, Waypoint, WaypointDestination, WaypointState,
};

use super::Problem;
use crate::proto::ambit::v1 as extension;
use crate::proto::ambit::v1::{WaypointExtension, waypoint_extension};
use crate::proto::istio::workload::{GatewayAddress, NamespacedHostname, NetworkAddress, gateway_address};

/// The default port of a waypoint.
const HBONE_PORT: u16 = 15008;

pub(super) fn encode_ip(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Four or sixteen bytes. A v4-mapped address becomes IPv4, as in the model.
pub(super) fn decode_ip(field: &str, bytes: &[u8]) -> Result<IpAddr, Problem> {
    decode_ip_as_is(field, bytes).map(|ip| ip.to_canonical())
}

/// Four or sixteen bytes.
pub(super) fn decode_ip_as_is(field: &str, bytes: &[u8]) -> Result<IpAddr, Problem> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(octets).into());
    }
    if let Ok(octets) = <[u8; 16]>::try_from(bytes) {
        return Ok(Ipv6Addr::from(octets).into());
    }
    Err(Problem::new(field, format!("an address has 4 or 16 bytes, not {}", bytes.len())))
}

pub(super) fn decode_port(field: impl FnOnce() -> String, port: u32) -> Result<u16, Problem> {
    u16::try_from(port).map_err(|_| Problem::new(field(), format!("{port} is not a port")))
}

/// An enum's value; the problem shows the number.
pub(super) fn decode_enum<T: TryFrom<i32>>(field: &str, number: i32) -> Result<T, Problem> {
    T::try_from(number).map_err(|_| Problem::new(field, format!("unknown value {number}")))
}

pub(super) fn required(field: &str, text: &str) -> Result<Arc<str>, Problem> {
    if text.is_empty() { Err(Problem::new(field, "must not be empty")) } else { Ok(text.into()) }
}

/// Decodes every element; the problem's field has the element's index.
pub(super) fn each<W, T>(
    field: &str,
    items: &[W],
    mut decode: impl FnMut(&str, &W) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    let mut decoded = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        decoded.push(decode(&format!("{field}[{index}]"), item)?);
    }
    Ok(decoded)
}

/// `<namespace>/<hostname>`
pub(super) fn decode_service_key(field: &str, text: &str) -> Result<ServiceKey, Problem> {
    match text.split_once('/') {
        Some((namespace, hostname)) if !namespace.is_empty() && !hostname.is_empty() => {
            Ok(ServiceKey { namespace: namespace.into(), hostname: hostname.into() })
        }
        _ => Err(Problem::new(field, format!("{text:?} is not <namespace>/<hostname>"))),
    }
}

/// `<namespace>/<name>`
pub(super) fn decode_policy_key(field: &str, text: &str) -> Result<PolicyKey, Problem> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(PolicyKey { namespace: namespace.into(), name: name.into() })
        }
        _ => Err(Problem::new(field, format!("{text:?} is not <namespace>/<name>"))),
    }
}

/// `None` for Kubernetes' own.
pub(super) fn encode_origin(origin: &Origin) -> Option<extension::Origin> {
    let claim = |claim: &Claim| {
        let (restricted, exported_to) = match &claim.exported {
            Exported::Everywhere => (false, Vec::new()),
            Exported::To(namespaces) => (true, namespaces.iter().map(ToString::to_string).collect()),
        };
        extension::Claim { created: claim.created, restricted, exported_to }
    };
    match origin {
        Origin::Kubernetes => None,
        Origin::Listed => Some(extension::Origin { listed: true, claim: None }),
        Origin::Entry(entry) => Some(extension::Origin { listed: false, claim: Some(claim(entry)) }),
    }
}

pub(super) fn decode_origin(origin: Option<extension::Origin>) -> Origin {
    match origin {
        None => Origin::Kubernetes,
        Some(extension::Origin { claim: Some(claim), .. }) => Origin::Entry(Claim {
            created: claim.created,
            exported: if claim.restricted {
                Exported::To(claim.exported_to.into_iter().map(Into::into).collect())
            } else {
                Exported::Everywhere
            },
        }),
        // A kind of origin that this version does not know claims nothing.
        Some(extension::Origin { claim: None, .. }) => Origin::Listed,
    }
}

/// What Istio's field says of a binding, and what Ambit's extension adds. A binding that does not act is in
/// the extension alone: others must not send anything to its waypoint.
pub(super) fn encode_waypoint(
    waypoint: Option<&Waypoint>,
) -> (Option<GatewayAddress>, Option<WaypointExtension>) {
    let Some(waypoint) = waypoint else { return (None, None) };
    let address = encode_gateway(waypoint);
    let (acting, pending) = if waypoint.acts() { (Some(address), None) } else { (None, Some(address)) };
    let state = match waypoint.state {
        WaypointState::Programmed => waypoint_extension::State::Programmed,
        WaypointState::Pending => waypoint_extension::State::Pending,
        WaypointState::Awaited => waypoint_extension::State::Awaited,
    };
    let extension = WaypointExtension {
        service_account: waypoint.service_account.as_deref().unwrap_or_default().to_owned(),
        state: state.into(),
        pending,
    };
    (acting, (extension != WaypointExtension::default()).then_some(extension))
}

fn encode_gateway(waypoint: &Waypoint) -> GatewayAddress {
    let destination = match &waypoint.destination {
        WaypointDestination::Hostname(key) => gateway_address::Destination::Hostname(NamespacedHostname {
            namespace: key.namespace.to_string(),
            hostname: key.hostname.to_string(),
        }),
        WaypointDestination::Address(ip) => gateway_address::Destination::Address(network_address(*ip)),
    };
    GatewayAddress { destination: Some(destination), hbone_mtls_port: waypoint.hbone_port.into() }
}

/// The binding; from another control plane there is no extension.
pub(super) fn decode_waypoint(
    acting: Option<&GatewayAddress>,
    extension: Option<&WaypointExtension>,
) -> Result<Option<Waypoint>, Problem> {
    const PENDING: &str = "extensions.waypoint.pending";
    let pending = || extension.and_then(|extension| extension.pending.as_ref()).map(|it| (PENDING, it));
    let Some((field, address)) = acting.map(|it| ("waypoint", it)).or_else(pending) else { return Ok(None) };
    let (destination, hbone_port) = decode_gateway(field, address)?;
    let account = extension.map(|extension| extension.service_account.as_str()).filter(|it| !it.is_empty());
    let state = match extension.map(|it| waypoint_extension::State::try_from(it.state)) {
        Some(Ok(waypoint_extension::State::Pending)) if acting.is_none() => WaypointState::Pending,
        Some(Ok(waypoint_extension::State::Awaited)) => WaypointState::Awaited,
        // What is not known acts: never a bypass.
        _ => WaypointState::Programmed,
    };
    Ok(Some(Waypoint { destination, hbone_port, service_account: account.map(Into::into), state }))
}

fn decode_gateway(field: &str, waypoint: &GatewayAddress) -> Result<(WaypointDestination, u16), Problem> {
    let destination = match &waypoint.destination {
        Some(gateway_address::Destination::Hostname(name)) => {
            let namespace = required(&format!("{field}.hostname.namespace"), &name.namespace)?;
            let hostname = required(&format!("{field}.hostname.hostname"), &name.hostname)?;
            WaypointDestination::Hostname(ServiceKey { namespace, hostname })
        }
        Some(gateway_address::Destination::Address(address)) => {
            WaypointDestination::Address(decode_network_address(&format!("{field}.address"), address)?)
        }
        None => return Err(Problem::new(field, "names no destination")),
    };
    let hbone_port = match waypoint.hbone_mtls_port {
        0 => HBONE_PORT,
        port => decode_port(|| format!("{field}.hbone_mtls_port"), port)?,
    };
    Ok((destination, hbone_port))
}

pub(super) fn network_address(ip: IpAddr) -> NetworkAddress {
    NetworkAddress { network: String::new(), address: encode_ip(ip), length: None }
}

pub(super) fn decode_network_address(field: &str, address: &NetworkAddress) -> Result<IpAddr, Problem> {
    let ip = decode_ip(&format!("{field}.address"), &address.address)?;
    let whole = u32::try_from(address.address.len() * 8).unwrap_or(u32::MAX);
    match address.length {
        // A range would have to be matched by prefix.
        Some(length) if length != whole => {
            Err(Problem::new(format!("{field}.length"), format!("a range (/{length}) is not supported")))
        }
        _ => Ok(ip),
    }
}
