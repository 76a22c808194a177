//! What operators, Prometheus and kubelet may ask: `/config_dump`, `/connections`, `/logging`; `/metrics`;
//! readiness.

use std::future::ready;
use std::sync::Arc;

use ambit_core::mesh::Mesh;
use ambit_core::model::{Authorization, Health, Service, Workload};
use ambit_daemon_kit::admin::{Admin, Readiness, Response, Router, Server, logging_routes};
use ambit_daemon_kit::telemetry::logs::Control;
use ambit_daemon_kit::telemetry::metrics::Metrics;
use ambit_xds::client::Status;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::connections::{EndedView, View};
use crate::daemon::Node;
use crate::error::Error;
use crate::pods::Pod;
use crate::reason;
use crate::report::chain;

/// Starts the three servers.
pub(crate) fn start(
    node: &Arc<Node>,
    log: &Control,
    metrics: &Metrics,
    readiness: &Readiness,
    xds: watch::Receiver<Status>,
) -> Result<Admin, Error> {
    let (dumped, listed, ended) = (node.clone(), node.clone(), node.clone());
    let admin = Router::new()
        .get("/config_dump", move |_| ready(Response::json(&dump(&dumped, &xds.borrow()))))
        .get("/connections", move |_| ready(Response::json(&connections(&listed))))
        .get("/connections/recent", move |_| ready(Response::json(&recent(&ended))))
        .merge(logging_routes(log));
    let server = |name, address, router| Server { name, address, router };
    let servers = vec![
        server("admin", node.config.admin, admin),
        server("metrics", node.config.metrics, Router::new().metrics(metrics)),
        server("readiness", node.config.readiness, readiness.routes()),
    ];
    Ok(Admin::start(servers)?)
}

/// What is open, whoever carries it.
fn connections(node: &Node) -> Vec<View> {
    node.report_records();
    let mut open = node.connections.list();
    open.extend(node.kernel_connections());
    open
}

/// What has ended, or was refused, and why; the newest first.
fn recent(node: &Node) -> Vec<EndedView> {
    node.report_records();
    ambit_daemon_kit::telemetry::recent::recent().iter().map(EndedView::new).collect()
}

/// Everything the daemon knows, without secrets.
fn dump(node: &Node, xds: &Status) -> Value {
    let mesh = node.state.mesh().unwrap_or_default();
    // Asked after the mesh was taken: what is shown below is in force if this says so.
    let enforced = node.state.is_enforced(&mesh);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": node.config.instance,
        "node": node.config.node,
        "xds": xds_view(xds),
        "enforced": enforced,
        "pods": node.pods.all().iter().map(|pod| pod_view(node, &mesh, pod)).collect::<Vec<_>>(),
        "certificates": node.certificates.status(),
        "ejected": node.endpoints.view(),
        "kernel": kernel_view(node),
        "workloads": mesh.workloads().map(|workload| workload_view(workload)).collect::<Vec<_>>(),
        "services": mesh.services().map(|service| service_view(service)).collect::<Vec<_>>(),
        "policies": mesh.policies().map(|policy| policy_view(policy)).collect::<Vec<_>>(),
    })
}

fn xds_view(xds: &Status) -> Value {
    let types: serde_json::Map<String, Value> = xds
        .types
        .iter()
        .map(|(kind, held)| {
            ((*kind).to_owned(), json!({ "resources": held.resources, "answered_nonce": held.nonce }))
        })
        .collect();
    json!({
        "connected": xds.connected,
        "synced": xds.synced,
        "error": xds.error,
        "types": types,
        "rejected": xds.rejected,
    })
}

fn pod_view(node: &Node, mesh: &Mesh, pod: &Pod) -> Value {
    let known = node.state.mesh().is_some() && mesh.workload(&pod.uid).is_some();
    let modes = ambit_core::inbound::plaintext_modes(mesh, &pod.uid);
    let ports: serde_json::Map<String, Value> = modes
        .ports
        .iter()
        .map(|(port, mode)| (port.to_string(), json!(format!("{mode:?}").to_lowercase())))
        .collect();
    json!({
        "uid": pod.uid.to_string(),
        "netns_cookie": pod.cookie.0,
        "known": known,
        "identity": pod.lease().map(|lease| lease.identity().to_string()),
        "plaintext": {
            "default": format!("{:?}", modes.default).to_lowercase(),
            "ports": ports,
            "probe_ports": modes.probe_ports,
        },
        "excluded_outbound_ports": mesh.workload(&pod.uid).map(|w| w.excluded_ports.outbound.clone()),
    })
}

fn kernel_view(node: &Node) -> Value {
    let dataplane = node.kernel.dataplane();
    let destinations = match dataplane.destinations() {
        Ok(addresses) => json!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>()),
        Err(error) => json!({ "error": chain(&error) }),
    };
    let refusals = match dataplane.counters() {
        Ok(counters) => {
            let seen = counters.iter().filter(|(_, count)| *count > 0);
            let seen: serde_json::Map<String, Value> = seen
                .map(|(reason, count)| (reason::from_kernel(*reason).to_string(), json!(count)))
                .collect();
            json!(seen)
        }
        Err(error) => json!({ "error": chain(&error) }),
    };
    json!({ "destinations": destinations, "refusals": refusals })
}

fn workload_view(workload: &Workload) -> Value {
    let services: serde_json::Map<String, Value> = workload
        .services
        .iter()
        .map(|(key, ports)| {
            let ports: serde_json::Map<String, Value> =
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
    let ports: serde_json::Map<String, Value> =
        service.ports.iter().map(|port| (port.port.to_string(), json!(port.target_port))).collect();
    json!({
        "key": service.key.to_string(),
        "addresses": service.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "ports": ports,
        "waypoint": service.waypoint.is_some(),
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
