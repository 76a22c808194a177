//! The shares of a service's endpoints as the kernel's alias table has them: [`table`].

use std::net::SocketAddr;

use super::{Avoid, Choice, shares};
use crate::health::Ejected;
use crate::mesh::Mesh;
use crate::model::{Affinity, LoadBalancingMode, LocalityScope, Service, Workload};

/// The endpoints that may serve the clients of `client`'s node, each with its share: exactly those of
/// [`Choice::pick`]. Empty where the kernel must not choose, because the answer is not one of shares
/// (affinity, passthrough, a waypoint, an endpoint by name), or not the same for all clients of the node
/// (several services at the address and port, clients of different localities), or there is nobody to choose.
pub fn table(
    mesh: &Mesh,
    client: &Workload,
    service: &Service,
    asked: SocketAddr,
    ejected: &Ejected,
) -> Vec<(SocketAddr, u32)> {
    let asked = SocketAddr::new(asked.ip().to_canonical(), asked.port());
    let rule = &service.load_balancing;
    let by_shares = service.waypoint.is_none()
        && rule.mode != LoadBalancingMode::Passthrough
        && rule.affinity == Affinity::None;
    if !by_shares || !is_alone(mesh, service, asked) || !is_typical(mesh, client, service) {
        return Vec::new();
    }
    let choice = Choice { mesh, client, service, asked, avoid: Avoid { ejected, tried: &[] } };
    // The kernel resolves no names.
    if choice.endpoints().any(|workload| workload.addresses.is_empty()) {
        return Vec::new();
    }
    let shares = choice.endpoints().filter_map(|workload| {
        let endpoint = choice.endpoint(workload)?;
        Some((endpoint.address, workload.capacity))
    });
    shares.collect()
}

/// Whether everybody who asks there means this service.
fn is_alone(mesh: &Mesh, service: &Service, asked: SocketAddr) -> bool {
    let mut serving =
        mesh.services_by_address(asked.ip()).filter(|service| service.port(asked.port()).is_some());
    serving.next().is_some_and(|first| first.key == service.key) && serving.next().is_none()
}

/// Whether the service's rule sees every client of the node where it sees this one.
fn is_typical(mesh: &Mesh, client: &Workload, service: &Service) -> bool {
    let rule = &service.load_balancing;
    let ranked = matches!(rule.mode, LoadBalancingMode::Strict | LoadBalancingMode::Failover);
    let scopes = || rule.routing_preference.iter().filter(|_| ranked).chain(&[LocalityScope::Network]);
    let mut clients = mesh.workloads_on_node(&client.node).filter(|other| other.in_mesh());
    clients.all(|other| scopes().all(|scope| shares(*scope, client, other)))
}
