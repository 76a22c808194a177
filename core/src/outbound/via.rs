//! Tunnels to waypoints: [`plan`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::carriage::{Plan, Tunnel, WaypointTunnel};
use crate::balance::{Avoid, Choice};
use crate::denial::Denial;
use crate::mesh::Mesh;
use crate::model::{Identity, Service, ServiceKey, Waypoint, WaypointDestination, WaypointState, Workload};
use crate::outlier::ServicePortKey;
use crate::ownership::{self, Owner};

/// What stands behind the waypoint.
pub(super) struct Fronted<'a> {
    /// For denials.
    pub(super) name: String,
    /// The service, if a service was asked for.
    pub(super) service: Option<&'a Arc<Service>>,
    /// The original destination.
    pub(super) asked: SocketAddr,
}

/// Whether the workload is one of the waypoint's own: what it sends on is not sent to it again.
pub(crate) fn serves(source: &Workload, waypoint: &Waypoint) -> bool {
    match &waypoint.destination {
        WaypointDestination::Hostname(service) => source.services.contains_key(service),
        WaypointDestination::Address(address) => source.has_address(*address),
    }
}

/// To one of the waypoint's endpoints, which must prove the waypoint's account.
pub(super) fn plan(
    mesh: &Mesh,
    source: &Arc<Workload>,
    fronted: &Fronted<'_>,
    waypoint: &Waypoint,
    avoid: &Avoid<'_>,
    random: u64,
) -> Result<Plan, Denial> {
    let (destination, name) = (fronted.name.clone(), waypoint.destination.clone());
    if waypoint.state == WaypointState::Awaited {
        return Err(Denial::WaypointNotProgrammed { destination, waypoint: name });
    }
    let found = find(mesh, source, waypoint, avoid, random);
    let (endpoint, peer, of) = found.ok_or(Denial::WaypointUnavailable { destination, waypoint: name })?;
    Ok(Plan::Waypoint(WaypointTunnel {
        tunnel: Tunnel {
            source: source.clone(),
            destination: endpoint.clone(),
            service: fronted.service.cloned(),
            peer,
            authority: fronted.asked,
            identities: identities(waypoint, of.as_ref(), endpoint),
        },
        waypoint: of.map(|service| ServicePortKey { service, port: waypoint.hbone_port }),
    }))
}

/// An endpoint, where it takes tunnels, and the service among whose endpoints it was chosen.
fn find<'a>(
    mesh: &'a Mesh,
    source: &'a Workload,
    waypoint: &Waypoint,
    avoid: &Avoid<'a>,
    random: u64,
) -> Option<(&'a Arc<Workload>, SocketAddr, Option<ServiceKey>)> {
    let port = waypoint.hbone_port;
    let service = match &waypoint.destination {
        WaypointDestination::Hostname(key) => mesh.service(key)?,
        WaypointDestination::Address(address) => {
            let address = SocketAddr::new(*address, port);
            match ownership::owner(mesh, &source.namespace, address)? {
                Owner::Service(service) => service,
                Owner::Workload(workload) => return Some((workload, address, None)),
                Owner::NoPort(_) | Owner::Node(_) => return None,
            }
        }
    };
    let family = service.addresses.first().copied().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    let asked = SocketAddr::new(family, port);
    let choice = Choice { mesh, client: source, service, asked, avoid: *avoid };
    let chosen = choice.make(random)?;
    // A name would have to be resolved first, and whose address it is then nobody could prove.
    let usable = !chosen.address.ip().is_unspecified();
    usable.then(|| (chosen.workload, chosen.address, Some(service.key.clone())))
}

/// The binding's account, in the namespace of the waypoint's service; without one, the endpoint's own.
fn identities(waypoint: &Waypoint, of: Option<&ServiceKey>, endpoint: &Workload) -> Vec<Identity> {
    let bound = |identity: Identity| match (&waypoint.service_account, of) {
        (Some(account), Some(of)) => {
            Identity { namespace: of.namespace.clone(), service_account: account.clone(), ..identity }
        }
        _ => identity,
    };
    endpoint.identities().map(bound).collect()
}
