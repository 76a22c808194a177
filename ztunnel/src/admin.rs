//! What operators, Prometheus and kubelet may ask: `/config_dump`, `/connections`, `/links`, `/logging`;
//! `/metrics`; readiness.
//!
//! Entry point: [`start`].

use std::future::ready;
use std::sync::Arc;

use ambit_core::chain;
use ambit_core::link::Link;
use ambit_core::mesh::Mesh;
use ambit_daemon_kit::admin::{Admin, Readiness, Response, Router, Server, logging_routes};
use ambit_daemon_kit::telemetry::logs::Control;
use ambit_daemon_kit::telemetry::metrics::Metrics;
use ambit_loader::Dataplane;
use ambit_proxy::report;
use ambit_proxy::views::{self, ConnectionView, EndedView};
use ambit_xds::client::Status;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::error::Error;
use crate::links::View;
use crate::node::Node;
use crate::pods::Pod;
use crate::reason::from_kernel;

/// Starts the three servers.
pub(crate) fn start(
    node: &Arc<Node>,
    log: &Control,
    metrics: &Metrics,
    readiness: &Readiness,
    xds: watch::Receiver<Status>,
) -> Result<Admin, Error> {
    let (dumped, listed, ended, linked) = (node.clone(), node.clone(), node.clone(), node.clone());
    let admin = Router::new()
        .get("/config_dump", move |_| ready(Response::json(&dump(&dumped, &xds.borrow()))))
        .get("/connections", move |_| ready(Response::json(&connections(&listed))))
        .get("/connections/recent", move |_| ready(Response::json(&recent(&ended))))
        .get("/links", move |_| ready(Response::json(&links(&linked))))
        .merge(logging_routes(log));
    let server = |name, address, router| Server { name, address, router };
    let servers = vec![
        server("admin", node.config.admin, admin),
        server("metrics", node.config.metrics, Router::new().metrics(metrics)),
        server("readiness", node.config.readiness, readiness.routes()),
    ];
    Ok(Admin::start(servers)?)
}

/// What is open, carried by the daemon or by the kernel.
fn connections(node: &Node) -> Vec<ConnectionView> {
    node.direct.report_records();
    let mut open = node.proxy.connections.list();
    open.extend(node.direct.connections());
    open
}

/// What kind of link each enrolled pod has, and why where it carries no direct connections.
fn links(node: &Node) -> Vec<Value> {
    let view = |view: View| {
        let mut shown = json!({"uid": view.uid.to_string(), "kind": view.link.name()});
        if let Some(interface) = view.interface {
            shown["interface"] = json!(interface);
        }
        if let Link::Unknown(why) = &view.link {
            shown["reason"] = json!(why.to_string());
        }
        shown
    };
    node.links.views().into_iter().map(view).collect()
}

/// What has ended, or was refused, and why; the newest first.
fn recent(node: &Node) -> Vec<EndedView> {
    node.direct.report_records();
    report::recent().iter().map(EndedView::new).collect()
}

/// Everything the daemon knows, without secrets.
fn dump(node: &Node, xds: &Status) -> Value {
    let mesh = node.proxy.mesh.mesh().unwrap_or_default();
    // Read after the mesh: what is shown below is in force if this is true.
    let enforced = node.proxy.mesh.is_enforced(&mesh);
    let mut dump = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": node.config.instance,
        "node": node.config.node,
        "xds": views::xds(xds),
        "enforced": enforced,
        "pods": node.pods.all().iter().map(|pod| pod_view(node, &mesh, pod)).collect::<Vec<_>>(),
        "certificates": node.identities.certificates.status(),
        "ejected": node.proxy.endpoints.view(),
        "kernel": kernel_view(&node.dataplane),
    });
    if let Some(dump) = dump.as_object_mut() {
        dump.extend(views::mesh(&mesh));
    }
    dump
}

fn pod_view(node: &Node, mesh: &Mesh, pod: &Pod) -> Value {
    let known = node.proxy.mesh.mesh().is_some() && mesh.workload(&pod.workload.uid).is_some();
    let modes = ambit_core::inbound::plaintext_modes(mesh, &pod.workload.uid);
    let ports: serde_json::Map<String, Value> = modes
        .ports
        .iter()
        .map(|(port, mode)| (port.to_string(), json!(format!("{mode:?}").to_lowercase())))
        .collect();
    json!({
        "uid": pod.workload.uid.to_string(),
        "netns_cookie": pod.cookie.0,
        "known": known,
        "link": node.links.kind(&pod.workload.uid),
        "identity": pod.workload.lease().map(|lease| lease.identity().to_string()),
        "plaintext": {
            "default": format!("{:?}", modes.default).to_lowercase(),
            "ports": ports,
            "probe_ports": modes.probe_ports,
        },
        "excluded_outbound_ports":
            mesh.workload(&pod.workload.uid).map(|w| w.excluded_ports.outbound.clone()),
    })
}

fn kernel_view(dataplane: &Dataplane) -> Value {
    let destinations = match dataplane.destinations() {
        Ok(addresses) => json!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>()),
        Err(error) => json!({ "error": chain(&error) }),
    };
    let refusals = match dataplane.counters() {
        Ok(counters) => {
            let seen = counters.iter().filter(|(_, count)| *count > 0);
            let seen: serde_json::Map<String, Value> =
                seen.map(|(reason, count)| (from_kernel(*reason).to_string(), json!(count))).collect();
            json!(seen)
        }
        Err(error) => json!({ "error": chain(&error) }),
    };
    json!({ "destinations": destinations, "refusals": refusals })
}
