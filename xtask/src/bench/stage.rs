//! Where each system has its pods and its CPUs: [`Stage`].

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use ambit_harness::{Family, Lab, NamespaceSpec, Pod, PodSpec, Process, eventually, within};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::system::{Route, System};
use super::{cpu, envoy, loads};

/// The lab with all servers running.
#[derive(Debug)]
pub(super) struct Stage {
    systems: Vec<System>,
    /// These end before the lab they run in.
    envoys: Option<envoy::Pair>,
    servers: Vec<Process>,
    lab: Lab,
}

impl Stage {
    /// Lays out the lab and starts every server.
    pub(super) fn start(systems: &[System]) -> Result<Self> {
        let mut builder = Lab::builder().binaries(&crate::build::built("release")).workers(1);
        for system in systems {
            let name = system.name();
            let namespace =
                if system.meshed() { NamespaceSpec::mesh(name) } else { NamespaceSpec::new(name) };
            let server = PodSpec::new(&format!("{name}/server")).node(system.server_node());
            builder = builder.namespace(namespace).pod(PodSpec::new(&format!("{name}/client"))).pod(server);
        }
        let lab = builder.start()?;
        let mut servers = Vec::new();
        for system in systems {
            servers.extend(serve(&lab, &route(&lab, *system))?);
        }
        let envoys = systems
            .contains(&System::Envoy)
            .then(|| envoy::Pair::start(&lab, &route(&lab, System::Envoy)))
            .transpose()?;
        let stage = Self { systems: systems.to_vec(), envoys, servers, lab };
        stage.pin()?;
        Ok(stage)
    }

    pub(super) fn route(&self, system: System) -> Route {
        route(&self.lab, system)
    }

    pub(super) fn has(&self, system: System) -> bool {
        self.systems.contains(&system)
    }

    /// Each node's daemon on the CPU of its node.
    fn pin(&self) -> Result<()> {
        for (cpu, process) in self.ztunnels()?.into_iter().enumerate() {
            cpu::pin(process, cpu)?;
        }
        Ok(())
    }

    fn ztunnels(&self) -> Result<Vec<u32>> {
        self.lab.nodes.iter().map(|node| node.ztunnel.pid().context("ztunnel is not running")).collect()
    }

    /// The processes that carry a system's bytes, the client's side first.
    pub(super) fn daemons(&self, system: System) -> Result<Vec<u32>> {
        Ok(match system {
            System::Tunnel => self.ztunnels()?,
            System::Direct => self.ztunnels()?.into_iter().take(1).collect(),
            System::Envoy => self.envoys.as_ref().map(envoy::Pair::processes).unwrap_or_default(),
            // Plain traffic has no daemons; HTTP proxies have a stage of their own.
            _ => Vec::new(),
        })
    }

    /// New daemons: one that has carried gigabytes is not idle.
    pub(super) fn renew(&mut self) -> Result<()> {
        for node in &self.lab.nodes {
            node.restart()?;
        }
        if self.envoys.take().is_some() {
            self.envoys = Some(envoy::Pair::start(&self.lab, &self.route(System::Envoy))?);
        }
        self.pin()
    }

    /// Makes a system ready to be measured: the first connection of a pair costs more than the others.
    pub(super) fn warm_up(&self, system: System) -> Result<()> {
        let route = self.route(system);
        eventually(&format!("{}: nginx answers", system.name()), || {
            loads::listens(&route.client, route.target, loads::HTTP)
        })?;
        eventually(&format!("{}: bytes come back", system.name()), || loads::hold(&route, 1).map(drop))?;
        if system == System::Direct {
            let _listener = loads::listen(&route.server)?;
            for port in [loads::IPERF, loads::HTTP, loads::ECHO] {
                self.becomes_direct(&route, port)?;
            }
        }
        Ok(())
    }

    /// Connects until the node's daemon says that the connection is direct.
    fn becomes_direct(&self, route: &Route, port: u16) -> Result<()> {
        const TIMEOUT: Duration = Duration::from_secs(10);
        let address = SocketAddr::new(route.target, port);
        within(TIMEOUT, &format!("connections to {address} are direct"), || {
            let open = route.client.run(|| TcpStream::connect(address))??;
            let client = open.local_addr()?;
            ensure!(!client.ip().is_loopback(), "they go to the daemon: path tunnel");
            let list = self.lab.nodes[0].connections()?;
            let paths = paths(&list, client);
            ensure!(!paths.is_empty(), "{client} is not in /connections");
            ensure!(paths.iter().all(|path| path == "direct"), "{client} is on path {paths:?}");
            Ok(())
        })
    }

    /// Takes the lab down and checks that nothing is left of it.
    pub(super) fn finish(self) -> Result<()> {
        let Self { lab, envoys, servers, .. } = self;
        drop((envoys, servers));
        lab.finish()
    }

    /// How many connections the server's daemon has carried itself: one more than before, and the path was
    /// not direct.
    pub(super) fn tunnelled(&self, system: System) -> Result<f64> {
        let namespace = ("destination_workload_namespace", system.name());
        let tls = [namespace, ("connection_security_policy", "mutual_tls")];
        Ok(self.lab.nodes[0].metrics()?.sum("istio_tcp_connections_opened_total", &tls))
    }
}

/// The paths under which `/connections` lists connections of a client's address.
fn paths(list: &Value, client: SocketAddr) -> BTreeSet<String> {
    let of = |entry: &Value| {
        let source = entry["source"]["address"].as_str()?;
        (source == client.to_string()).then(|| entry["path"].as_str().unwrap_or_default().to_owned())
    };
    list.as_array().into_iter().flatten().filter_map(of).collect()
}

fn route(lab: &Lab, system: System) -> Route {
    let pod = |name: &str| lab.pod(&format!("{}/{name}", system.name()));
    let (client, server) = (pod("client"), pod("server"));
    let target = match system {
        // The Envoy in the client's pod listens there.
        System::Envoy => Ipv4Addr::LOCALHOST.into(),
        _ => server.ip(Family::V4),
    };
    // Also on one node: what the kernel moves between CPUs costs both kinds alike.
    Route { client, server, target, port: loads::HTTP, client_cpu: 0, server_cpu: 1 }
}

/// iperf3 and nginx, on the server's CPU.
fn serve(lab: &Lab, route: &Route) -> Result<Vec<Process>> {
    let (pod, cpu) = (&route.server, route.server_cpu.to_string());
    let iperf = pod.start("taskset", &["-c", &cpu, "iperf3", "--server"])?;
    eventually(&format!("iperf3 of {} listens", pod.spec.key()), || {
        loads::listens(pod, pod.ip(Family::V4), loads::IPERF)
    })?;
    Ok(vec![iperf, nginx(lab, pod, route.server_cpu)?])
}

/// nginx in a pod, on one CPU; it listens when this returns.
pub(super) fn nginx(lab: &Lab, pod: &Pod, cpu: usize) -> Result<Process> {
    let folder = lab.dir().join(format!("nginx-{}", pod.spec.namespace));
    std::fs::create_dir(&folder)?;
    let config = folder.join("nginx.conf");
    std::fs::write(&config, loads::nginx_config(&folder))?;
    let (cpu, config) = (cpu.to_string(), config.to_string_lossy().into_owned());
    let process = pod.start("taskset", &["-c", &cpu, "nginx", "-c", &config])?;
    eventually(&format!("nginx of {} listens", pod.spec.key()), || {
        loads::listens(pod, pod.ip(Family::V4), loads::HTTP)
    })?;
    Ok(process)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_paths_of_a_client() {
        let list = json!([
            {"path": "direct", "source": {"address": "10.0.0.1:40000"}},
            {"path": "tunnel", "source": {"address": "10.0.0.1:40001"}},
            {"path": "tunnel", "source": {"address": "10.0.0.1:40002"}},
            {"path": "direct", "source": {"address": "10.0.0.1:40002"}},
        ]);
        let rows: [(&str, &str, &[&str]); 4] = [
            ("direct", "10.0.0.1:40000", &["direct"]),
            ("tunnel", "10.0.0.1:40001", &["tunnel"]),
            ("reported twice", "10.0.0.1:40002", &["direct", "tunnel"]),
            ("not listed", "10.0.0.1:40003", &[]),
        ];
        for (name, client, expected) in rows {
            let found = paths(&list, client.parse().expect("an address"));
            assert_eq!(found, expected.iter().map(|path| (*path).to_owned()).collect(), "{name}");
        }
    }
}
