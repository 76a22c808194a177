//! The configuration as it was received: [`mesh()`], [`xds()`].

use ambit_core::mesh::Mesh;
use ambit_core::model::{Authorization, Health, Service, Workload};
use ambit_xds::client::Status;
use serde_json::{Map, Value, json};

/// How the xDS client is doing.
pub fn xds(status: &Status) -> Value {
    let types: Map<String, Value> = status
        .types
        .iter()
        .map(|(kind, held)| {
            ((*kind).to_owned(), json!({ "resources": held.resources, "answered_nonce": held.nonce }))
        })
        .collect();
    json!({
        "connected": status.connected,
        "synced": status.synced,
        "error": status.error,
        "types": types,
        "rejected": status.rejected,
    })
}

/// Everything in the mesh, by kind.
pub fn mesh(mesh: &Mesh) -> Map<String, Value> {
    let workloads: Vec<_> = mesh.workloads().map(|workload| workload_view(workload)).collect();
    let services: Vec<_> = mesh.services().map(|service| service_view(service)).collect();
    let policies: Vec<_> = mesh.policies().map(|policy| policy_view(policy)).collect();
    [("workloads", workloads), ("services", services), ("policies", policies)]
        .into_iter()
        .map(|(kind, views)| (kind.to_owned(), Value::Array(views)))
        .collect()
}

fn workload_view(workload: &Workload) -> Value {
    let services: Map<String, Value> = workload
        .services
        .iter()
        .map(|(key, ports)| {
            let ports: Map<String, Value> =
                ports.iter().map(|port| (port.service_port.to_string(), json!(port.target_port))).collect();
            (key.to_string(), json!(ports))
        })
        .collect();
    json!({
        "uid": workload.uid.to_string(),
        "name": &*workload.name,
        "namespace": &*workload.namespace,
        "identity": workload.identity().to_string(),
        "node": &*workload.node,
        "addresses": workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "in_mesh": workload.in_mesh(),
        "healthy": workload.health == Health::Healthy,
        "services": services,
        "policies": workload.policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "probe_ports": workload.probe_ports,
        "excluded_inbound_ports": workload.excluded_ports.inbound,
        "excluded_outbound_ports": workload.excluded_ports.outbound,
    })
}

fn service_view(service: &Service) -> Value {
    let ports: Map<String, Value> =
        service.ports.iter().map(|port| (port.port.to_string(), json!(port.target_port))).collect();
    json!({
        "key": service.key.to_string(),
        "addresses": service.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "ports": ports,
        "waypoint": service.waypoint.as_ref().map(|waypoint| waypoint.destination.to_string()),
    })
}

fn policy_view(policy: &Authorization) -> Value {
    json!({
        "key": policy.key.to_string(),
        "scope": format!("{:?}", policy.scope),
        "action": format!("{:?}", policy.action),
        "dry_run": policy.dry_run,
        "rules": policy.rules.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>(),
    })
}
