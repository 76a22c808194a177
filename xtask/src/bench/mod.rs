//! `cargo xtask bench`: the same traffic with and without the mesh, in turn, within one run.
//!
//! Machines differ and drift, so every figure is also a ratio to plain TCP of the same run. Node 0 has CPU 0, node 1 has CPU 1;
//! each ztunnel has one worker. `loads` holds what is measured, `report` what is made of it.

mod loads;
mod report;

use std::net::SocketAddr;

use ambit_harness::{Family, Lab, NamespaceSpec, Node, Pod, PodSpec, Process, eventually};
use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{build, ebpf, setup};
use report::Report;

/// How much is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often each load runs on each system; medians are reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long one load runs, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Idle connections for the memory figure.
    #[arg(long, default_value_t = 3000)]
    connections: usize,
}

/// One way of getting from a client on node 0 to a server on node 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    /// Pods outside the mesh.
    Plain,
    /// Enrolled pods: HBONE between two ztunnels.
    Tunnel,
}

impl System {
    /// In the order in which they take turns.
    const ALL: [Self; 2] = [Self::Plain, Self::Tunnel];

    /// Its name in reports and the namespace of its pods.
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tunnel => "tunnel",
        }
    }

    fn client(self, lab: &Lab) -> Pod {
        lab.pod(&format!("{}/client", self.name()))
    }

    fn server(self, lab: &Lab) -> Pod {
        lab.pod(&format!("{}/server", self.name()))
    }
}

/// Builds the release, lays the lab out, measures, writes `target/bench/report.{md,json}`.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure_root("bench")?;
    for needs in [&setup::EBPF[..], &setup::LAB, &setup::BENCH] {
        setup::ensure(needs)?;
    }
    ebpf::run()?;
    let arguments = ["build", "--release", "--package", "ambit-ztunnel", "--package", "ambit-controller"];
    build::step("building the release", &mut build::cargo(&arguments))?;
    let lab = Lab::builder()
        .binaries(&build::target().join("release"))
        .workers(1)
        .namespace(NamespaceSpec::mesh("tunnel"))
        .namespace(NamespaceSpec::new("plain"))
        .pod(PodSpec::new("tunnel/client"))
        .pod(PodSpec::new("tunnel/server").node(1))
        .pod(PodSpec::new("plain/client"))
        .pod(PodSpec::new("plain/server").node(1))
        .start()?;
    for (cpu, node) in lab.nodes.iter().enumerate() {
        loads::pin(node.ztunnel.pid().context("ztunnel is not running")?, cpu)?;
    }
    let mut report = Report::default();
    measure(&lab, options, &mut report)?;
    memory(&lab, options.connections, &mut report)?;
    lab.finish()?;
    report.write(&build::target().join("bench"))
}

/// Every load on every system in turn, so that a slow minute of the machine hits all alike.
fn measure(lab: &Lab, options: &Options, report: &mut Report) -> Result<()> {
    let mut servers = Vec::new();
    for system in System::ALL {
        servers.extend(serve(lab, &system.server(lab))?);
    }
    for round in 1..=options.rounds {
        for load in loads::ALL {
            for system in System::ALL {
                let value = load.run(&system.client(lab), &system.server(lab), options.seconds)?;
                build::say(&format!(
                    "round {round}: {} {}: {value:.1} {}",
                    system.name(),
                    load.name(),
                    load.unit()
                ));
                report.add(system.name(), load.name(), load.unit(), load.better(), value);
            }
        }
    }
    Ok(())
}

/// iperf3 and nginx, on node 1's CPU.
fn serve(lab: &Lab, pod: &Pod) -> Result<Vec<Process>> {
    let folder = lab.dir().join(format!("nginx-{}", pod.spec.namespace));
    std::fs::create_dir(&folder)?;
    let config = folder.join("nginx.conf");
    std::fs::write(&config, loads::nginx_config(&folder))?;
    let config = config.to_string_lossy().into_owned();
    let servers = vec![
        pod.start("taskset", &["-c", "1", "iperf3", "--server"])?,
        pod.start("taskset", &["-c", "1", "nginx", "-c", &config])?,
    ];
    for port in [loads::IPERF, loads::HTTP] {
        let address = SocketAddr::new(pod.ip(Family::V4), port);
        eventually(&format!("{address} listens"), || {
            pod.run(|| std::net::TcpStream::connect(address))?.map(drop).context("not yet")
        })?;
    }
    Ok(servers)
}

/// What the daemons weigh in KiB, idle and with many idle connections. Plain has no daemon.
fn memory(lab: &Lab, connections: usize, report: &mut Report) -> Result<()> {
    let weigh = |node: &Node| node.ztunnel.memory().map(loads::count);
    let (client, server) = (System::Tunnel.client(lab), System::Tunnel.server(lab));
    // A daemon that has just carried gigabytes is not idle: a new one is.
    for (cpu, node) in lab.nodes.iter().enumerate() {
        node.restart()?;
        loads::pin(node.ztunnel.pid().context("ztunnel is not running")?, cpu)?;
    }
    let idle = lab.nodes.iter().map(weigh).collect::<Result<Vec<_>>>()?;
    let held = loads::hold(&client, &server, connections)?;
    let busy = lab.nodes.iter().map(weigh).collect::<Result<Vec<_>>>()?;
    ensure!(held.len() == connections, "{} connections of {connections}", held.len());
    for (side, (idle, busy)) in ["client's ztunnel", "server's ztunnel"].iter().zip(idle.iter().zip(&busy)) {
        report.alone("tunnel", &format!("{side}, idle"), "MiB", idle / 1024.0);
        report.alone(
            "tunnel",
            &format!("{side}, per idle connection"),
            "KiB",
            (busy - idle) / loads::count(connections as u64),
        );
    }
    Ok(())
}
