//! What operators, Prometheus and kubelet may ask: `/config_dump`, `/connections`, `/logging`; `/metrics`;
//! readiness.
//!
//! Entry point: [`start`].

use std::future::ready;
use std::sync::Arc;

use ambit_certificates::Certificates;
use ambit_daemon_kit::admin::{Admin, Readiness, Response, Router, Server, logging_routes};
use ambit_daemon_kit::telemetry::logs::Control;
use ambit_daemon_kit::telemetry::metrics::Metrics;
use ambit_proxy::report;
use ambit_proxy::views::{self, EndedView};
use ambit_xds::client::Status;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::config::Config;
use crate::error::Error;
use crate::waypoint::Waypoint;

/// What the servers show.
pub(crate) struct Shown<'a> {
    pub(crate) waypoint: &'a Arc<Waypoint>,
    pub(crate) certificates: &'a Certificates,
    pub(crate) log: &'a Control,
    pub(crate) metrics: &'a Metrics,
    pub(crate) readiness: &'a Readiness,
    pub(crate) xds: watch::Receiver<Status>,
}

/// Starts the three servers.
pub(crate) fn start(config: &Config, shown: Shown<'_>) -> Result<Admin, Error> {
    let Shown { waypoint, certificates, log, metrics, readiness, xds } = shown;
    let (dumped, listed, certificates) = (waypoint.clone(), waypoint.clone(), certificates.clone());
    let admin = Router::new()
        .get("/config_dump", move |_| ready(Response::json(&dump(&dumped, &certificates, &xds.borrow()))))
        .get("/connections", move |_| ready(Response::json(&listed.proxy.connections.list())))
        .get("/connections/recent", move |_| {
            let ended: Vec<_> = report::recent().iter().map(EndedView::new).collect();
            ready(Response::json(&ended))
        })
        .merge(logging_routes(log));
    let server = |name, address, router| Server { name, address, router };
    let servers = vec![
        server("admin", config.admin, admin),
        server("metrics", config.metrics, Router::new().metrics(metrics)),
        server("readiness", config.readiness, readiness.routes()),
    ];
    Ok(Admin::start(servers)?)
}

/// Everything the waypoint knows, without secrets.
fn dump(waypoint: &Waypoint, certificates: &Certificates, xds: &Status) -> Value {
    let mesh = waypoint.proxy.mesh.mesh().unwrap_or_default();
    let routes = |routes: &Arc<ambit_core::route::ServiceRoutes>| {
        let attached: Vec<_> = routes
            .attached()
            .iter()
            .map(|it| {
                json!({
                    "route": it.route.key.to_string(),
                    "port": it.port,
                    "consumer": it.consumer.as_deref(),
                    "rules": it.route.rules.len(),
                })
            })
            .collect();
        json!({ "service": routes.service().to_string(), "attached": attached })
    };
    let mut dump = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "workload": waypoint.served.workload.uid.to_string(),
        "xds": views::xds(xds),
        "enforced": waypoint.proxy.mesh.is_enforced(&mesh),
        "routes": mesh.all_routes().map(routes).collect::<Vec<_>>(),
        "certificates": certificates.status(),
        "ejected": waypoint.proxy.endpoints.view(),
    });
    if let Some(dump) = dump.as_object_mut() {
        dump.extend(views::mesh(&mesh));
    }
    dump
}
