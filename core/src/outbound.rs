//! Where an outbound connection of an enrolled workload goes: [`plan`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::Denial;
use crate::balance::{Avoid, Choice};
use crate::inbound::HBONE_PORT;
use crate::mesh::Mesh;
use crate::model::{Affinity, Identity, LoadBalancingMode, Service, Workload, WorkloadUid};

/// An outbound connection that the kernel handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub source: WorkloadUid,
    /// What the application asked for.
    pub destination: SocketAddr,
    /// The endpoint that the kernel chose among the service's, where it chose.
    pub chosen: Option<SocketAddr>,
}

/// How the connection is carried. Direct paths and waypoints will be further variants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Mutual TLS to the node of the endpoint.
    Tunnel(Tunnel),
    /// The endpoint is the client's own workload: a plain connection inside its namespace.
    Local(Direct),
    /// The endpoint is outside the mesh: plain TCP.
    Passthrough(Direct),
}

/// An HBONE tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub source: Arc<Workload>,
    pub destination: Arc<Workload>,
    /// The service the application asked for, if it asked for one.
    pub service: Option<Arc<Service>>,
    /// Where the tunnel is opened: the endpoint's HBONE port.
    pub peer: SocketAddr,
    /// Where the tunnel ends: the application's address.
    pub authority: SocketAddr,
    /// Any of these may answer.
    pub identities: Vec<Identity>,
}

/// A plain connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct {
    pub source: Arc<Workload>,
    /// `None`: an address that no workload is known for.
    pub destination: Option<Arc<Workload>>,
    pub service: Option<Arc<Service>>,
    /// Unspecified (with the right port) where there is a host name.
    pub address: SocketAddr,
    /// The endpoint is reached by this name: it is resolved when connecting, and [`resolved`] says how to go
    /// on.
    pub hostname: Option<Arc<str>>,
}

/// Decides where a flow goes. `dice` is a uniformly random number: the same number, the same answer.
///
/// An address that nobody has any more is refused: it was captured because it was in the mesh a moment ago,
/// and a second try goes the way that is right then.
pub fn plan(mesh: &Mesh, flow: &Flow, dice: u64) -> Result<Plan, Denial> {
    plan_without(mesh, flow, &Avoid::NONE, dice)
}

/// [`plan`], without some endpoints of the service.
pub fn plan_without(mesh: &Mesh, flow: &Flow, avoid: &Avoid, dice: u64) -> Result<Plan, Denial> {
    let source = mesh.workload(&flow.source).ok_or_else(|| Denial::SourceUnknown(flow.source.clone()))?;
    let address = SocketAddr::new(flow.destination.ip().to_canonical(), flow.destination.port());
    if let Some(service) = service_at(mesh, source, address) {
        return plan_service(mesh, source, service, address, flow.chosen, avoid, dice);
    }
    if let Some(workload) = mesh.workload_by_address(address.ip()) {
        return plan_workload(mesh, source, workload, address);
    }
    match mesh.services_by_address(address.ip()).next() {
        Some(service) => {
            Err(Denial::ServicePortUnknown { service: service.key.clone(), port: address.port() })
        }
        None => Err(Denial::DestinationUnknown(address)),
    }
}

/// How to go on when the name of a plan's endpoint was resolved to an address: an enrolled workload may have
/// it. `None` where no peer can have that address.
pub fn resolved(mesh: &Mesh, named: &Direct, address: IpAddr) -> Option<Plan> {
    let address = address.to_canonical();
    let nobody = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let endpoint = named.destination.as_ref().filter(|_| !nobody)?;
    let address = SocketAddr::new(address, named.address.port());
    Some(carry(mesh, &named.source, endpoint, named.service.as_ref(), address))
}

/// What else can be done after plans that failed: another endpoint of the same service, if it has one that
/// was not tried.
pub fn another(mesh: &Mesh, flow: &Flow, avoid: &Avoid, dice: u64) -> Option<Plan> {
    let plan = plan_without(mesh, flow, avoid, dice).ok()?;
    // Where the client named the endpoint itself, there is no other to find.
    let new = plan.service().is_some() && plan.destination().is_some_and(|w| !avoid.tried.contains(&w.uid));
    new.then_some(plan)
}

impl Plan {
    /// The service the application asked for, if it asked for one.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Tunnel(tunnel) => tunnel.service.as_ref(),
            Self::Local(direct) | Self::Passthrough(direct) => direct.service.as_ref(),
        }
    }

    /// The endpoint, where it is known.
    pub fn destination(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Tunnel(tunnel) => Some(&tunnel.destination),
            Self::Local(direct) | Self::Passthrough(direct) => direct.destination.as_ref(),
        }
    }
}

/// The service that has the address and the port; of several the client's own namespace's, then the first by
/// key.
fn service_at<'a>(mesh: &'a Mesh, source: &Workload, address: SocketAddr) -> Option<&'a Arc<Service>> {
    let serving =
        || mesh.services_by_address(address.ip()).filter(|service| service.port(address.port()).is_some());
    serving().find(|service| service.key.namespace == source.namespace).or_else(|| serving().next())
}

fn plan_service(
    mesh: &Mesh,
    source: &Arc<Workload>,
    service: &Arc<Service>,
    asked: SocketAddr,
    chosen: Option<SocketAddr>,
    avoid: &Avoid,
    dice: u64,
) -> Result<Plan, Denial> {
    if service.waypoint.is_some() {
        return Err(Denial::WaypointUnsupported(format!("service {}", service.key)));
    }
    if service.load_balancing.mode == LoadBalancingMode::Passthrough {
        return plan_passthrough(mesh, source, service, asked);
    }
    let choice = Choice { mesh, client: source, service, asked, avoid: *avoid };
    // Affinity is no matter of who chose: the answer is the same, or that of newer news.
    let chosen = chosen.filter(|_| service.load_balancing.affinity == Affinity::None);
    let endpoint = chosen
        .and_then(|chosen| choice.accept(chosen))
        .or_else(|| choice.make(dice))
        .ok_or_else(|| Denial::NoEndpoint { service: service.key.clone(), port: asked.port() })?;
    Ok(carry(mesh, source, endpoint.workload, Some(service), endpoint.address))
}

/// The client chose the address itself. What stands behind an address that is no workload's is not known;
/// where it might be something in the mesh, sending plaintext there is refused.
fn plan_passthrough(
    mesh: &Mesh,
    source: &Arc<Workload>,
    service: &Arc<Service>,
    address: SocketAddr,
) -> Result<Plan, Denial> {
    if let Some(workload) = mesh.workload_by_address(address.ip()) {
        return Ok(carry(mesh, source, workload, Some(service), address));
    }
    if mesh.endpoints(&service.key).any(|endpoint| endpoint.in_mesh()) {
        return Err(Denial::DestinationUnknown(address));
    }
    Ok(Plan::Passthrough(Direct {
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
) -> Result<Plan, Denial> {
    if workload.waypoint.is_some() && workload.uid != source.uid {
        return Err(Denial::WaypointUnsupported(format!("workload {}", workload.uid)));
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
    // Something written down elsewhere may have the address of an enrolled workload: then it is that
    // workload, and gets no plaintext.
    let owner = || mesh.workload_by_address(address.ip()).filter(|owner| owner.in_mesh());
    let endpoint = if endpoint.in_mesh() { endpoint } else { owner().unwrap_or(endpoint) };
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
    let direct = Direct {
        source: source.clone(),
        destination: Some(endpoint.clone()),
        service: service.cloned(),
        hostname: endpoint.hostname.clone().filter(|_| address.ip().is_unspecified()),
        address,
    };
    if endpoint.uid == source.uid { Plan::Local(direct) } else { Plan::Passthrough(direct) }
}
