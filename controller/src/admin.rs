//! The admin interface: `/debug` (problems by object) and `/config_dump` (the mesh).

use std::sync::Arc;

use ambit_core::derive::Condition;
use ambit_core::mesh::Mesh;
use ambit_daemon_kit::admin::{Response, Router};
use ambit_xds::server::Publisher;
use serde_json::{Value, json};

use crate::shared::{Shared, Status};

/// `/debug` and `/config_dump`.
pub(crate) fn routes(shared: &Arc<Shared>, publisher: &Publisher) -> Router {
    let (debug_shared, dump_shared, publisher) = (shared.clone(), shared.clone(), publisher.clone());
    Router::new()
        .get("/debug", move |_| {
            let clients = publisher.stats().clients;
            std::future::ready(Response::json(&debug(&debug_shared.status.load(), clients)))
        })
        .get("/config_dump", move |_| std::future::ready(Response::json(&dump(&dump_shared.mesh.load()))))
}

/// Problems by object.
fn debug(status: &Status, clients: u64) -> Value {
    let conditions: Vec<Value> = status.conditions.iter().map(condition).collect();
    json!({
        "files": status.files,
        "objects": status.objects,
        "clients": clients,
        "unreachable": status.unreachable,
        "problems": status.problems,
        "conditions": conditions,
    })
}

fn condition(condition: &Condition) -> Value {
    json!({
        "object": condition.object.to_string(),
        "field": condition.field,
        "accepted": condition.accepted,
        "message": condition.message,
    })
}

/// The mesh as published.
fn dump(mesh: &Mesh) -> Value {
    let workloads = mesh.workloads().map(|w| {
        json!({
            "uid": w.uid.to_string(),
            "name": &*w.name,
            "namespace": &*w.namespace,
            "node": &*w.node,
            "identity": w.identity().to_string(),
            "addresses": w.addresses,
            "protocol": format!("{:?}", w.protocol),
            "health": format!("{:?}", w.health),
            "services": w.services.keys().map(ToString::to_string).collect::<Vec<_>>(),
            "policies": w.policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "probe_ports": w.probe_ports,
            "excluded_inbound_ports": w.excluded_ports.inbound,
            "excluded_outbound_ports": w.excluded_ports.outbound,
        })
    });
    let services = mesh.services().map(|s| {
        let ports: Vec<_> =
            s.ports.iter().map(|port| json!({"port": port.port, "target_port": port.target_port})).collect();
        let endpoints: Vec<_> = mesh.endpoints(&s.key).map(|w| w.uid.to_string()).collect();
        json!({ "name": s.key.to_string(), "addresses": s.addresses, "ports": ports, "endpoints": endpoints })
    });
    let policies = mesh.policies().map(|p| {
        json!({
            "name": p.key.to_string(),
            "action": format!("{:?}", p.action),
            "scope": format!("{:?}", p.scope),
            "dry_run": p.dry_run,
            "rules": p.rules.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>(),
        })
    });
    json!({
        "workloads": workloads.collect::<Vec<_>>(),
        "services": services.collect::<Vec<_>>(),
        "policies": policies.collect::<Vec<_>>(),
    })
}
