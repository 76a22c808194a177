//! Whether a peer is a workload's own waypoint: [`is_own`].

use crate::mesh::Mesh;
use crate::model::{Identity, ServiceKey, Waypoint, WaypointDestination, Workload};

/// Whether the identity is one that a waypoint of the workload, or of a service that it serves, has to prove.
/// A binding that does not act yet counts too: others may have learned earlier that it acts.
pub(super) fn is_own(mesh: &Mesh, workload: &Workload, peer: &Identity) -> bool {
    if !workload.identities().any(|own| own.trust_domain == peer.trust_domain) {
        return false;
    }
    let services = workload.services.keys().filter_map(|key| mesh.service(key));
    let of_services = services.filter_map(|service| service.waypoint.as_ref());
    workload.waypoint.iter().chain(of_services).any(|waypoint| proves(mesh, waypoint, peer))
}

fn proves(mesh: &Mesh, waypoint: &Waypoint, peer: &Identity) -> bool {
    match (&waypoint.destination, &waypoint.service_account) {
        (WaypointDestination::Hostname(service), Some(account)) => {
            peer.namespace == service.namespace && peer.service_account == *account
        }
        // Another control plane's: the account is that of its endpoints.
        (WaypointDestination::Hostname(service), None) => serves(mesh, service, peer),
        (WaypointDestination::Address(address), _) => {
            let services = mesh.services_by_address(*address);
            mesh.workloads_by_address(*address).any(|workload| has(workload, peer))
                || services.into_iter().any(|service| serves(mesh, &service.key, peer))
        }
    }
}

fn serves(mesh: &Mesh, service: &ServiceKey, peer: &Identity) -> bool {
    mesh.endpoints(service).any(|workload| has(workload, peer))
}

fn has(workload: &Workload, peer: &Identity) -> bool {
    workload.namespace == peer.namespace && workload.service_account == peer.service_account
}
