//! The controller as a process of its own, beside a cluster, and what it costs.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ambit_cluster::Cluster;
use ambit_harness::within;
use anyhow::{Context, Result};

use crate::kubernetes::{DEADLINE, SYSTEM, run};

/// What a process uses.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Resident memory in MB.
    pub resident: u64,
    /// Peak resident memory in MB.
    pub peak: u64,
    /// Processor time since its start, in seconds.
    pub cpu: f64,
}

/// A running controller; dropping it ends it.
#[derive(Debug)]
pub struct Controller {
    child: Child,
    /// Where it serves xDS.
    pub address: String,
    /// From its start until it was ready.
    pub ready: Duration,
}

impl Controller {
    /// Starts it for the cluster; files go to the folder.
    pub fn start(cluster: &Cluster, folder: &Path) -> Result<Self> {
        // All held until each has its own.
        let held: Vec<TcpListener> =
            (0..4).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>()?;
        let free = |at: usize| -> Result<String> { Ok(held[at].local_addr()?.to_string()) };
        let (listen, metrics, readiness, admin) = (free(0)?, free(1)?, free(2)?, free(3)?);
        let config = folder.join("controller.yaml");
        std::fs::write(
            &config,
            format!(
                "kubernetes: {{kubeconfig: {}, namespace: {SYSTEM}, pod_name: scale}}\nlisten: \
                 {listen}\nmetrics: {metrics}\nreadiness: {readiness}\nadmin: {admin}\n",
                cluster.kubeconfig().display()
            ),
        )?;
        let programs =
            std::env::var_os("AMBIT_BIN_DIR").map(PathBuf::from).context("AMBIT_BIN_DIR is not set")?;
        let log = std::fs::File::create(folder.join("controller.log"))?;
        let mut command = Command::new(programs.join("controller"));
        command
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        drop(held);
        let began = Instant::now();
        let mut controller = Self { child: command.spawn()?, address: listen, ready: Duration::ZERO };
        let url = format!("http://{readiness}/healthz/ready");
        within(DEADLINE, "the controller is ready", || {
            run(Command::new("curl").args(["--silent", "--fail", &url])).map(drop)
        })
        .with_context(|| std::fs::read_to_string(folder.join("controller.log")).unwrap_or_default())?;
        controller.ready = began.elapsed();
        Ok(controller)
    }

    /// What the controller uses now.
    pub fn usage(&self) -> Result<Usage> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
            let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
            Ok(kilobytes * 1024 / 1_000_000)
        };
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(") ").next().context("no stat")?.split(' ').collect();
        let ticks: u32 = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
        Ok(Usage { resident: field("VmRSS:")?, peak: field("VmHWM:")?, cpu: f64::from(ticks) / 100.0 })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
