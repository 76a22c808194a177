//! HTTP proxies between one client and one server, each proxy alone on its CPU: [`measure`].
//!
//! Client, server and, for the deployed waypoint, the ztunnels of both sides share CPU 0; the proxy has CPU 1
//! and one thread. So its CPU time for a request is the figure that says most: requests/s are also limited by
//! what CPU 0 can make of them.

mod configuration;

use std::net::SocketAddr;
use std::path::Path;

use ambit_harness::{
    Family, Lab, NamespaceSpec, Pod, PodSpec, Process, ServiceSpec, Waypoint, eventually, http,
};
use anyhow::{Context, Result, ensure};

use super::expected::{PROXY_HELD, PROXY_IDLE};
use super::loads::{self, Better, Figure, Load};
use super::report::Report;
use super::runs::{Options, add, run_load, weights};
use super::stage::nginx;
use super::system::{Route, System};
use super::{cpu, envoy};
use crate::build;

/// Of client, server and everything but the proxy.
const OTHERS_CPU: usize = 0;
const PROXY_CPU: usize = 1;
/// Connections for the memory figure.
const CONNECTIONS: usize = 1000;
/// Routes of the one service, where there are many.
const MANY_ROUTES: usize = 5000;
/// The port of the service behind the waypoint.
const SERVICE: u16 = 80;
/// The waypoint's admin server.
const ADMIN: u16 = 15000;

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {namespace: \
                       waypoint-hbone, name: waypoint}\nspec:\n  gatewayClassName: ambit-waypoint\n  \
                       listeners: [{name: mesh, port: 15008, protocol: HBONE}]\n---\napiVersion: \
                       gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {namespace: waypoint-hbone, \
                       name: server}\nspec:\n  parentRefs: [{group: \"\", kind: Service, name: server}]\n  \
                       rules: [{backendRefs: [{name: server, port: 80}]}]\n";

/// Every load on every system in turn, in rounds, and what the proxies weigh.
pub(super) fn measure(systems: &[System], options: &Options, report: &mut Report) -> Result<()> {
    let lab = lab(systems).start()?;
    let measured = rounds(&lab, systems, options, report);
    measured.and(lab.finish())
}

fn rounds(lab: &Lab, systems: &[System], options: &Options, report: &mut Report) -> Result<()> {
    let mut servers = Vec::new();
    let mut proxies = Vec::new();
    for system in systems {
        servers.push(nginx(lab, &server(lab, *system), OTHERS_CPU)?);
    }
    for node in &lab.nodes {
        cpu::pin(node.ztunnel.pid().context("ztunnel is not running")?, OTHERS_CPU)?;
    }
    for system in systems {
        proxies.push((*system, Proxy::start(lab, *system)?));
    }
    for round in 1..=options.rounds {
        let of_round = (round, options.rounds);
        for (system, proxy) in &proxies {
            warm_up(lab, *system, proxy)?;
            let (route, daemons) = (route(lab, *system), proxy.processes()?);
            let (figures, used) = run_load(Load::Proxied, *system, (&route, &daemons), options)?;
            add(report, of_round, *system, &figures);
            report.used += used;
        }
        // The hot lists are not about memory.
        if options.profile {
            continue;
        }
        for (system, proxy) in &mut proxies {
            // One that has carried millions of requests is not idle.
            proxy.renew(lab, *system)?;
            add(report, of_round, *system, &memory(lab, *system, proxy)?);
        }
    }
    drop((proxies, servers));
    Ok(())
}

/// What a fresh proxy weighs, idle and with open connections.
fn memory(lab: &Lab, system: System, proxy: &Proxy) -> Result<Vec<Figure>> {
    let processes = proxy.processes()?;
    let idle = weights(&processes)?;
    warm_up(lab, system, proxy)?;
    let held = loads::hold_http(&route(lab, system), CONNECTIONS)?;
    let after = weights(&processes)?;
    drop(held);
    let figure = |metric, value: &f64| Figure { metric, unit: "MB", better: Better::Lower, value: *value };
    let both = idle.iter().zip(&after);
    Ok(both.flat_map(|(idle, after)| [figure(PROXY_IDLE, idle), figure(PROXY_HELD, after)]).collect())
}

/// Each system's pods are in a namespace of its name.
fn lab(systems: &[System]) -> ambit_harness::Builder {
    let mut builder = Lab::builder().binaries(&build::built("release")).workers(1);
    for system in systems {
        let name = system.name();
        let pod = |pod: &str| PodSpec::new(&format!("{name}/{pod}"));
        let namespace = if system.meshed() {
            NamespaceSpec::mesh(name).label("istio.io/use-waypoint", "waypoint")
        } else {
            NamespaceSpec::new(name)
        };
        builder =
            builder.namespace(namespace).pod(pod("client")).pod(pod("server").node(system.server_node()));
        builder = match system {
            System::WaypointHbone => builder
                .service(
                    ServiceSpec::new(&format!("{name}/server")).port(SERVICE, loads::HTTP).protocol("http"),
                )
                .service(ServiceSpec::new(&format!("{name}/waypoint")).port(15008, 15008))
                .object("gateway", GATEWAY),
            System::Http => builder,
            _ => builder.pod(pod("proxy")),
        };
    }
    builder
}

fn server(lab: &Lab, system: System) -> Pod {
    lab.pod(&format!("{}/server", system.name()))
}

fn route(lab: &Lab, system: System) -> Route {
    let server = server(lab, system);
    let (target, port) = match system {
        System::Http => (server.ip(Family::V4), loads::HTTP),
        System::WaypointHbone => (lab.service(&format!("{}/server", system.name()), Family::V4), SERVICE),
        _ => (lab.pod(&format!("{}/proxy", system.name())).ip(Family::V4), loads::HTTP),
    };
    let client = lab.pod(&format!("{}/client", system.name()));
    Route { client, server, target, port, client_cpu: OTHERS_CPU, server_cpu: OTHERS_CPU }
}

/// A running proxy; it ends when it is dropped.
#[derive(Debug)]
enum Proxy {
    None,
    Program(Process),
    Waypoint(Box<Waypoint>),
}

impl Proxy {
    fn start(lab: &Lab, system: System) -> Result<Self> {
        let folder = lab.dir().join("proxies");
        std::fs::create_dir_all(&folder)?;
        if system == System::Http {
            return Ok(Self::None);
        }
        if system == System::WaypointHbone {
            return waypoint(lab).map(|waypoint| Self::Waypoint(Box::new(waypoint)));
        }
        let pod = lab.pod(&format!("{}/proxy", system.name()));
        let listen = SocketAddr::new(pod.ip(Family::V4), loads::HTTP);
        let server = SocketAddr::new(server(lab, system).ip(Family::V4), loads::HTTP);
        let command = command(system, &folder, listen, server)?;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let process = pod.start("taskset", &command)?;
        eventually(&format!("{} listens", system.name()), || {
            loads::listens(&pod, listen.ip(), listen.port())
        })
        .with_context(|| process.log())?;
        Ok(Self::Program(process))
    }

    /// The same as a new process.
    fn renew(&mut self, lab: &Lab, system: System) -> Result<()> {
        if let Self::Waypoint(waypoint) = self {
            waypoint.daemon.kill()?;
            waypoint.start()?;
            return prepare(waypoint);
        }
        // The port must be free first.
        *self = Self::None;
        *self = Self::start(lab, system)?;
        Ok(())
    }

    fn processes(&self) -> Result<Vec<u32>> {
        Ok(match self {
            Self::None => Vec::new(),
            Self::Program(process) => vec![process.id()],
            Self::Waypoint(waypoint) => vec![waypoint.daemon.pid().context("the waypoint is not running")?],
        })
    }
}

/// For `taskset`.
fn command(system: System, folder: &Path, listen: SocketAddr, server: SocketAddr) -> Result<Vec<String>> {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        Ok::<_, anyhow::Error>(path)
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let cpu = PROXY_CPU.to_string();
    Ok(match system {
        System::EnvoyHttp => {
            let config = write("envoy.json", &configuration::envoy(listen, server).to_string())?;
            let program = envoy::program().context("Envoy is not installed")?;
            envoy::arguments(&program, PROXY_CPU, &config).to_vec()
        }
        System::Haproxy => {
            let config = write("haproxy.cfg", &configuration::haproxy(listen, server))?;
            words(&["-c", &cpu, "haproxy", "-db", "-f", &config.to_string_lossy()])
        }
        _ => {
            let program = build::built("release").join("examples/plain");
            let program = program.to_string_lossy();
            let routes = if system == System::WaypointRoutes { MANY_ROUTES } else { 1 };
            let [listen, server, routes] = [listen.to_string(), server.to_string(), routes.to_string()];
            words(&["-c", &cpu, &program, &listen, &server, &routes])
        }
    })
}

/// The program as it is deployed.
fn waypoint(lab: &Lab) -> Result<Waypoint> {
    let key = format!("{}/waypoint", System::WaypointHbone.name());
    let waypoint = lab.waypoint(PodSpec::new(&key).node(1), &key, "")?;
    prepare(&waypoint)?;
    Ok(waypoint)
}

/// On its CPU, and without an access log, as the others are.
fn prepare(waypoint: &Waypoint) -> Result<()> {
    cpu::pin(waypoint.daemon.pid().context("the waypoint is not running")?, PROXY_CPU)?;
    let admin = SocketAddr::new([127, 0, 0, 1].into(), ADMIN);
    http::request(&waypoint.pod.netns, "POST", admin, "/logging?level=info,access=off")?.ok().map(drop)
}

/// Makes a system ready to be measured, and sees that requests take its way.
fn warm_up(lab: &Lab, system: System, proxy: &Proxy) -> Result<()> {
    let route = route(lab, system);
    eventually(&format!("{}: answers come", system.name()), || {
        loads::hold_http(&route, 1)?;
        let Proxy::Waypoint(waypoint) = proxy else { return Ok(()) };
        let passed = waypoint.metrics()?.sum("istio_requests_total", &[("response_code", "200")]);
        ensure!(passed > 0.0, "the waypoint has seen no request");
        Ok(())
    })
}
