//! A waypoint as a plain HTTP/1.1 proxy on one thread, for `cargo xtask bench`: `plain LISTEN ENDPOINT
//! ROUTES`.
//!
//! Requests go the way of every request from its head on: route, filters, endpoint, connection, report. What
//! is missing is HBONE on either side, the controller, the access log and the admin servers. Of the routes
//! all but the last match a path of their own, so that a request to `/` finds its rule among them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ambit_core::inbound::HBONE_PORT;
use ambit_core::mesh::{Change, Mesh};
use ambit_core::model::{AppProtocol, TunnelProtocol, Waypoint as Binding, WaypointDestination};
use ambit_core::route::{
    Attached, Backend, Backends, Match, PathMatch, Route, RouteKey, RouteKind, Rule, ServiceRoutes, Target,
    Timeouts,
};
use ambit_core::testing::{behind, pod, service, service_key};
use ambit_proxy::proxy::{Proxy, Timeouts as ProxyTimeouts};
use ambit_proxy::workload::{HostWorkload, LocalWorkload};
use ambit_waypoint::plain;
use ambit_waypoint::waypoint::{Limits, Waypoint};
use ambit_waypoint::worker::Worker;
use anyhow::{Context, Result};
use tokio::net::TcpListener;

/// The service's own port.
const PORT: u16 = 80;
/// The service's address, to which no client connects.
const SERVICE: &str = "10.96.0.1";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next =
        |what| arguments.next().with_context(|| format!("usage: plain LISTEN ENDPOINT ROUTES: no {what}"));
    let (listen, endpoint) = (next("LISTEN")?.parse()?, next("ENDPOINT")?.parse()?);
    let routes = next("ROUTES")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(listen, endpoint, routes))
}

async fn serve(listen: SocketAddr, endpoint: SocketAddr, routes: usize) -> Result<()> {
    let proxy = Arc::new(Proxy::new(ProxyTimeouts { connect: Duration::from_secs(6) }, None));
    proxy.mesh.publish(mesh(endpoint, routes));
    let own = LocalWorkload::new(pod("bench/waypoint", &[]).uid);
    let served = HostWorkload { workload: own, address: None };
    let worker = Worker::new(Arc::new(Waypoint::new(proxy, served, Limits::default())));
    let identity = pod("bench/client", &[]).identity();
    let dialled = SocketAddr::new(SERVICE.parse::<IpAddr>()?, PORT);
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("failed to listen on {listen}"))?;
    println!("ready");
    loop {
        let (stream, client) = listener.accept().await.context("failed to accept")?;
        stream.set_nodelay(true)?;
        let (worker, identity) = (worker.clone(), identity.clone());
        tokio::spawn(async move {
            if let Err(denial) = plain::connection(worker, stream, (client, identity), dialled).await {
                eprintln!("{client}: {denial}");
            }
        });
    }
}

/// The service behind the waypoint, with one endpoint outside the mesh.
fn mesh(endpoint: SocketAddr, routes: usize) -> Mesh {
    let gate = service("bench/waypoint", &["10.96.0.2"], &[(HBONE_PORT, HBONE_PORT)]);
    let waypoint = behind(pod("bench/waypoint", &["10.0.0.1"]), &gate);
    let mut service = service("bench/server", &[SERVICE], &[(PORT, endpoint.port())]);
    service.ports[0].app_protocol = AppProtocol::Http11;
    service.waypoint = Some(Binding::new(WaypointDestination::Hostname(service_key("bench/waypoint"))));
    let mut server = behind(pod("bench/server", &[&endpoint.ip().to_string()]), &service);
    server.protocol = TunnelProtocol::None;
    let mut mesh = Mesh::new();
    mesh.apply([
        Change::PutService(Arc::new(gate)),
        Change::PutService(Arc::new(service)),
        Change::PutWorkload(Arc::new(waypoint)),
        Change::PutWorkload(Arc::new(server)),
        Change::PutRoutes(Arc::new(ServiceRoutes::new(
            service_key("bench/server"),
            (0..routes).map(|number| route(number, number + 1 == routes)).collect(),
        ))),
    ]);
    mesh
}

fn route(number: usize, is_last: bool) -> Attached {
    let path = if is_last { "/".into() } else { format!("/route-{number}").into() };
    let backend = Backend {
        target: Target::Service { service: service_key("bench/server"), port: PORT },
        weight: 1,
        request_headers: Vec::new(),
        response_headers: Vec::new(),
    };
    let rule = Rule {
        name: None,
        matches: vec![Match { path: PathMatch::Prefix(path), ..Match::any() }],
        filters: Vec::new(),
        backends: Backends::new(vec![backend]),
        timeouts: Timeouts::default(),
        retry: None,
    };
    let name = format!("route-{number}").as_str().into();
    let key = RouteKey { kind: RouteKind::Http, namespace: "bench".into(), name };
    Attached {
        route: Arc::new(Route { key, created: 0, server_names: Vec::new(), rules: vec![rule] }),
        port: None,
        consumer: None,
    }
}
