//! The endpoints of a service and their shares, for the kernel: [`table`].

use std::net::SocketAddr;

use super::choice::{Avoid, Choice, shares};
use crate::mesh::Mesh;
use crate::model::{Affinity, LoadBalancingMode, LocalityScope, Service, Workload};
use crate::outlier::Ejected;
use crate::ownership;

/// The eligible endpoints for clients on `client`'s node, each with its share, exactly as [`Choice::pick`]
/// has them. Empty where there is none, and where the kernel must not choose:
///
/// - the choice is not by shares (affinity, passthrough, a waypoint, an endpoint by host name), or
/// - it differs between the node's clients (another owner of the address and port, different localities).
pub fn table(
    mesh: &Mesh,
    client: &Workload,
    service: &Service,
    asked: SocketAddr,
    ejected: &Ejected,
) -> Vec<(SocketAddr, u32)> {
    let asked = SocketAddr::new(asked.ip().to_canonical(), asked.port());
    let rule = &service.load_balancing;
    let by_shares = service.acting_waypoint().is_none()
        && rule.mode != LoadBalancingMode::Passthrough
        && rule.affinity == Affinity::None;
    if !by_shares || !ownership::owns_for_all(mesh, service, asked) || !is_typical(mesh, client, service) {
        return Vec::new();
    }
    let choice = Choice { mesh, client, service, asked, avoid: Avoid { ejected, tried: &[] } };
    // The kernel does not resolve host names.
    if choice.endpoints().any(|workload| workload.addresses.is_empty()) {
        return Vec::new();
    }
    let shares = choice.endpoints().filter_map(|workload| {
        let endpoint = choice.endpoint(workload)?;
        Some((endpoint.address, workload.capacity))
    });
    shares.collect()
}

/// Whether every client of the node has the same ranks as this one.
fn is_typical(mesh: &Mesh, client: &Workload, service: &Service) -> bool {
    let rule = &service.load_balancing;
    let ranked = matches!(rule.mode, LoadBalancingMode::Strict | LoadBalancingMode::Failover);
    let scopes = || rule.routing_preference.iter().filter(|_| ranked).chain(&[LocalityScope::Network]);
    let mut clients = mesh.workloads_on_node(&client.node).filter(|other| other.in_mesh());
    clients.all(|other| scopes().all(|scope| shares(*scope, client, other)))
}
