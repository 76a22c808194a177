//! Where a captured outbound connection goes: [`plan`]. Where a waypoint sends what it has routed:
//! [`forward`].

mod carriage;
mod via;

pub use self::carriage::{Connection, Local, Plaintext, Plan, Tunnel, WaypointTunnel};
pub(crate) use self::via::serves;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::balance::{Avoid, Choice};
use crate::denial::Denial;
use crate::inbound::HBONE_PORT;
use crate::mesh::Mesh;
use crate::model::{Affinity, Identity, LoadBalancingMode, Service, ServiceKey, Workload, WorkloadUid};
use crate::ownership::{self, Owner};

/// Decides where a connection goes. `avoid` names endpoints that are left out where there are others.
/// `random` is a uniformly random number; equal numbers give equal plans.
///
/// A destination that no resource has is denied: it was captured because one had it a moment ago, and a
/// retry is captured or not by the current state. One that only clients of other namespaces see is left as it
/// is without a mesh.
pub fn plan(mesh: &Mesh, connection: &Connection, avoid: &Avoid, random: u64) -> Result<Plan, Denial> {
    let source =
        mesh.workload(&connection.source).ok_or_else(|| Denial::SourceUnknown(connection.source.clone()))?;
    let address = SocketAddr::new(connection.destination.ip().to_canonical(), connection.destination.port());
    match ownership::owner(mesh, &source.namespace, address) {
        Some(Owner::Service(service)) => {
            plan_service(mesh, source, service, address, connection.chosen, avoid, random)
        }
        Some(Owner::Workload(workload)) => plan_workload(mesh, source, workload, address, avoid, random),
        Some(Owner::NoPort(service)) => {
            Err(Denial::ServicePortUnknown { service: service.key.clone(), port: address.port() })
        }
        // Captured for others, whom an entry concerns.
        Some(Owner::Node(_)) => Ok(untouched(source, address)),
        None if ownership::is_claimed(mesh, address.ip()) => Ok(untouched(source, address)),
        None => Err(Denial::DestinationUnknown(address)),
    }
}

/// To where the client would have come without a mesh.
fn untouched(source: &Arc<Workload>, address: SocketAddr) -> Plan {
    let source = source.clone();
    Plan::Passthrough(Plaintext { source, destination: None, service: None, address, hostname: None })
}

/// The plan for a destination that no resource has, captured because the kernel captures everything for now:
/// as without capture. `None` where [`plan`] has an answer of its own.
pub fn outside(mesh: &Mesh, connection: &Connection) -> Option<Plan> {
    let Err(Denial::DestinationUnknown(address)) = plan(mesh, connection, &Avoid::NONE, 0) else {
        return None;
    };
    mesh.workload(&connection.source).map(|source| untouched(source, address))
}

/// The plan for an address that the host name of an endpoint was resolved to: it is planned as its owner's,
/// so that neither a service nor an enrolled workload gets plaintext. `None` where no peer can have that
/// address, or its owner refuses.
pub fn resolved(mesh: &Mesh, named: &Plaintext, address: IpAddr, random: u64) -> Option<Plan> {
    let address = address.to_canonical();
    let unusable = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let endpoint = named.destination.as_ref().filter(|_| !unusable)?;
    let address = SocketAddr::new(address, named.address.port());
    match ownership::owner(mesh, &named.source.namespace, address) {
        Some(Owner::Service(service)) => {
            let plan =
                plan_service(mesh, &named.source, service, address, None, &Avoid::NONE, random).ok()?;
            // A name that stands for names would have to be resolved without end.
            let is_name = matches!(&plan, Plan::Passthrough(Plaintext { hostname: Some(_), .. }));
            (!is_name).then_some(plan)
        }
        Some(Owner::NoPort(_)) => None,
        Some(Owner::Workload(_) | Owner::Node(_)) | None => {
            Some(carry(mesh, &named.source, endpoint, named.service.as_ref(), address))
        }
    }
}

/// The plan for a retry: another endpoint of the same service, if it has one that was not tried.
pub fn another(mesh: &Mesh, connection: &Connection, avoid: &Avoid, random: u64) -> Option<Plan> {
    let plan = plan(mesh, connection, avoid, random).ok()?;
    // Where the original destination is the endpoint itself, there is no other.
    let new = plan.chosen_of(connection).is_some()
        && plan.destination().is_some_and(|w| !avoid.tried.contains(&w.uid));
    new.then_some(plan)
}

/// What a waypoint sends on: a request or connection that its rules have given to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The waypoint's own workload.
    pub source: WorkloadUid,
    /// The backend.
    pub service: ServiceKey,
    /// The backend's port.
    pub port: u16,
    /// The address that the client dialled, where the backend is what it dialled: an endpoint of its family
    /// is chosen, and where the service leaves the choice to the client, it is this one.
    pub dialled: Option<IpAddr>,
}

/// Decides where a waypoint sends something for a backend. A backend that has another waypoint is reached
/// through that one, as by everybody. Retry with the failed endpoints in `avoid`.
pub fn forward(mesh: &Mesh, what: &Forward, avoid: &Avoid, random: u64) -> Result<Plan, Denial> {
    let source = mesh.workload(&what.source).ok_or_else(|| Denial::SourceUnknown(what.source.clone()))?;
    let Some(service) = mesh.service(&what.service) else {
        return Err(Denial::NoEndpoint { service: what.service.clone(), port: what.port });
    };
    if service.port(what.port).is_none() {
        return Err(Denial::ServicePortUnknown { service: service.key.clone(), port: what.port });
    }
    let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let address = what.dialled.or_else(|| service.addresses.first().copied()).unwrap_or(unknown);
    let asked = SocketAddr::new(address.to_canonical(), what.port);
    plan_service(mesh, source, service, asked, None, avoid, random)
}

/// The service that owns the address and the port for this client; for an unknown one, for clients of no
/// particular namespace.
pub fn service_at<'a>(
    mesh: &'a Mesh,
    source: Option<&Workload>,
    address: SocketAddr,
) -> Option<&'a Arc<Service>> {
    match ownership::owner(mesh, source.map_or("", |source| &source.namespace), address) {
        Some(Owner::Service(service)) => Some(service),
        _ => None,
    }
}

fn plan_service(
    mesh: &Mesh,
    source: &Arc<Workload>,
    service: &Arc<Service>,
    asked: SocketAddr,
    chosen: Option<SocketAddr>,
    avoid: &Avoid,
    random: u64,
) -> Result<Plan, Denial> {
    if let Some(waypoint) = service.acting_waypoint().filter(|it| !serves(source, it)) {
        let name = format!("service {}", service.key);
        return via::plan(
            mesh,
            source,
            &via::Fronted { name, service: Some(service), asked },
            waypoint,
            avoid,
            random,
        );
    }
    if service.load_balancing.mode == LoadBalancingMode::Passthrough {
        return plan_passthrough(mesh, source, service, asked);
    }
    let choice = Choice { mesh, client: source, service, asked, avoid: *avoid };
    // With affinity the daemon's choice equals the kernel's, or rests on newer state.
    let chosen = chosen.filter(|_| service.load_balancing.affinity == Affinity::None);
    let endpoint = chosen
        .and_then(|chosen| choice.accept(chosen))
        .or_else(|| choice.make(random))
        .ok_or_else(|| Denial::NoEndpoint { service: service.key.clone(), port: asked.port() })?;
    Ok(carry(mesh, source, endpoint.workload, Some(service), endpoint.address))
}

/// The client has chosen the address itself. An address that no workload has may be an enrolled workload's
/// that is not known yet: where the service has enrolled endpoints, plaintext to it is denied.
fn plan_passthrough(
    mesh: &Mesh,
    source: &Arc<Workload>,
    service: &Arc<Service>,
    address: SocketAddr,
) -> Result<Plan, Denial> {
    if let Some(workload) = ownership::workload_at(mesh, &source.namespace, address.ip()) {
        return Ok(carry(mesh, source, workload, Some(service), address));
    }
    if mesh.endpoints(&service.key).any(|endpoint| endpoint.in_mesh()) {
        return Err(Denial::DestinationUnknown(address));
    }
    Ok(Plan::Passthrough(Plaintext {
        source: source.clone(),
        destination: None,
        service: Some(service.clone()),
        hostname: None,
        address,
    }))
}

fn plan_workload(
    mesh: &Mesh,
    source: &Arc<Workload>,
    workload: &Arc<Workload>,
    address: SocketAddr,
    avoid: &Avoid,
    random: u64,
) -> Result<Plan, Denial> {
    let others = workload.acting_waypoint().filter(|_| workload.uid != source.uid);
    if let Some(waypoint) = others.filter(|it| !serves(source, it)) {
        let name = format!("workload {}", workload.uid);
        let fronted = via::Fronted { name, service: None, asked: address };
        return via::plan(mesh, source, &fronted, waypoint, avoid, random);
    }
    Ok(carry(mesh, source, workload, None, address))
}

fn carry(
    mesh: &Mesh,
    source: &Arc<Workload>,
    endpoint: &Arc<Workload>,
    service: Option<&Arc<Service>>,
    address: SocketAddr,
) -> Plan {
    // An entry or EndpointSlice may list the address of an enrolled workload: then it is that workload, and
    // gets no plaintext.
    let owner = ownership::workload_at(mesh, &source.namespace, address.ip()).filter(|owner| owner.in_mesh());
    let endpoint = match owner {
        Some(owner) if !endpoint.in_mesh() => owner,
        Some(pod) if pod.origin.is_kubernetes() && !endpoint.origin.is_kubernetes() => pod,
        _ => endpoint,
    };
    if endpoint.in_mesh() && endpoint.uid != source.uid {
        let mut identities: Vec<Identity> = endpoint.identities().collect();
        identities.extend(service.into_iter().flat_map(|service| service.subject_alt_names.iter().cloned()));
        return Plan::Tunnel(Tunnel {
            source: source.clone(),
            destination: endpoint.clone(),
            service: service.cloned(),
            peer: SocketAddr::new(address.ip(), HBONE_PORT),
            authority: address,
            identities,
        });
    }
    let plaintext = Plaintext {
        source: source.clone(),
        destination: Some(endpoint.clone()),
        service: service.cloned(),
        hostname: endpoint.hostname.clone().filter(|_| address.ip().is_unspecified()),
        address,
    };
    if endpoint.uid == source.uid { Plan::Local(Local(plaintext)) } else { Plan::Passthrough(plaintext) }
}
