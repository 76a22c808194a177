//! A waypoint of the lab: the real program in a pod of its own.
//!
//! Entry point: [`Lab::waypoint`].

use anyhow::{Context, Result};

use crate::daemon::Daemon;
use crate::lab::Lab;
use crate::metrics::Metrics;
use crate::node::{METRICS, READINESS};
use crate::pod::Pod;
use crate::spec::PodSpec;
use crate::wait;

/// A waypoint's pod and its process.
#[derive(Debug)]
pub struct Waypoint {
    pub pod: Pod,
    pub daemon: Daemon,
}

impl Lab {
    /// Adds a waypoint's pod, which stands outside the mesh and serves a service `namespace/name`, and starts
    /// the program in it. Further lines of its configuration may follow.
    pub fn waypoint(&self, pod: PodSpec, service: &str, config: &str) -> Result<Waypoint> {
        let pod = self.add_pod(pod.legacy())?;
        let (namespace, name) = service.split_once('/').context("a service is named namespace/name")?;
        let node = self.node_of(&pod);
        let text = format!(
            "workload: {}\nservice: {namespace}/{name}.{namespace}.svc.cluster.local\nbootstrap: {}\n\
             workers: 1\ndrain_timeout_seconds: 5\nlog: {{format: json}}\n{config}",
            pod.spec.uid(),
            node.dir.join("bootstrap.yaml").display(),
        );
        let name = format!("waypoint-{}-{}", pod.spec.namespace, pod.spec.name);
        let file = self.dir().join(format!("{name}.yaml"));
        std::fs::write(&file, text).with_context(|| format!("failed to write {}", file.display()))?;
        let log = self.dir().join(format!("{name}.log"));
        let daemon = Daemon::new(&name, &pod.netns, self.bin.join("waypoint"), file, log);
        let waypoint = Waypoint { pod, daemon };
        waypoint.start()?;
        Ok(waypoint)
    }
}

impl Waypoint {
    /// Starts the process and waits until it is ready.
    pub fn start(&self) -> Result<()> {
        self.daemon.spawn()?;
        wait::eventually(&format!("{} is ready", self.pod.spec.key()), || {
            self.daemon.check()?;
            self.daemon.get(READINESS, "/healthz/ready").map(drop)
        })
        .with_context(|| self.daemon.tail(40))
    }

    /// What it counts.
    pub fn metrics(&self) -> Result<Metrics> {
        self.daemon.get(METRICS, "/metrics").map(|text| Metrics::parse(&text))
    }
}
