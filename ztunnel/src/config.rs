//! The daemon's configuration file (YAML): [`Config::read`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_core::outlier;
use ambit_daemon_kit::config::{self, Mistake};
use ambit_daemon_kit::controller;
use ambit_daemon_kit::telemetry::logs;
use serde::Deserialize;

use crate::error::Error;

/// The file, field by field.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Names this daemon's programs and maps among those of one kernel.
    pub(crate) instance: String,
    /// The node's name, as in workloads. `--node` overrides it: one file may serve all nodes.
    #[serde(default)]
    pub(crate) node: String,
    /// The bootstrap file that `controller bootstrap` writes; or [`Config::controller`].
    pub(crate) bootstrap: Option<PathBuf>,
    /// How the controller is reached where the token and the roots lie in files of their own.
    pub(crate) controller: Option<controller::Settings>,
    /// Whether the daemon runs in the node's network namespace, whose processes send probes. Otherwise it is
    /// the machine's first namespace, or the one that a source of enrolments names.
    #[serde(default = "yes")]
    pub(crate) host_network: bool,
    /// Whether pods that take plaintext without a policy go on doing so while no daemon renews the lease.
    #[serde(default)]
    pub(crate) open_without_daemon: bool,
    /// The folder of the enrolment socket.
    pub(crate) run_dir: PathBuf,
    /// A mounted BPF file system; pins live here.
    pub(crate) bpffs: PathBuf,
    /// The root of cgroup v2; found from the mounts if absent.
    pub(crate) cgroup: Option<PathBuf>,
    /// How much memory the daemon may take, as in the limit of its container: `512Mi`. Half of it is for what
    /// tunnels hold; without a limit that is 256 MiB.
    memory_limit: Option<String>,
    /// Worker threads, which carry connections.
    #[serde(default = "two")]
    pub(crate) workers: usize,
    #[serde(default = "admin")]
    pub(crate) admin: SocketAddr,
    #[serde(default = "metrics")]
    pub(crate) metrics: SocketAddr,
    #[serde(default = "readiness")]
    pub(crate) readiness: SocketAddr,
    #[serde(default)]
    pub(crate) log: logs::Settings,
    /// The lifetime of certificates to ask the CA for.
    #[serde(default = "day")]
    certificate_ttl_seconds: u64,
    /// How long open connections may take to end after SIGTERM.
    #[serde(default = "ten")]
    drain_timeout_seconds: u64,
    /// How long a connection may take to be made: deciding, every endpoint tried, the application's answer.
    #[serde(default = "ten")]
    connect_timeout_seconds: u64,
    /// How long metrics keep showing the names of connections that have ended.
    #[serde(default = "hour")]
    metrics_idle_seconds: u64,
    #[serde(default)]
    pub(crate) direct: DirectPath,
    #[serde(default)]
    ejection: Ejection,
}

/// The direct path between two pods of this node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DirectPath {
    pub(crate) enabled: bool,
    /// How long the kernel uses cached verdicts, and lets plaintext pass where no policy applies, after the
    /// daemon last renewed the lease.
    lease_seconds: u64,
    /// Whether the operator declares that no pod of this node listens or speaks on another's link.
    pub(crate) trusted_links: bool,
}

impl Default for DirectPath {
    fn default() -> Self {
        Self { enabled: true, lease_seconds: 60, trusted_links: false }
    }
}

impl DirectPath {
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }
}

/// Outlier detection: ejecting endpoints when connections to them fail.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Ejection {
    enabled: bool,
    /// How many failures in a row eject an endpoint.
    consecutive_failures: u32,
    /// Duration of the first ejection; doubled each time.
    first_seconds: u64,
    longest_seconds: u64,
    /// How many percent of a service's endpoints are ejected at most.
    most_percent: u8,
}

impl Default for Ejection {
    fn default() -> Self {
        let settings = outlier::Settings::default();
        Self {
            enabled: true,
            consecutive_failures: settings.consecutive_failures,
            first_seconds: settings.first_ejection.as_secs(),
            longest_seconds: settings.longest_ejection.as_secs(),
            most_percent: settings.most_ejected_percent,
        }
    }
}

fn yes() -> bool {
    true
}

/// Below this the daemon could not do its work.
const LEAST_MEMORY: u64 = 64 << 20;

/// A number of bytes as Kubernetes writes it: digits, and perhaps a unit.
fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 6] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
    ];
    let found = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, unit) = found.unwrap_or((text, 1));
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn two() -> usize {
    2
}

fn ten() -> u64 {
    10
}

fn hour() -> u64 {
    60 * 60
}

fn day() -> u64 {
    24 * 60 * 60
}

fn admin() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000)
}

fn metrics() -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15020)
}

fn readiness() -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15021)
}

impl Config {
    /// Reads and validates the file. A node's name given here overrides the file's.
    pub(crate) fn read(path: &Path, node: Option<String>) -> Result<Self, Error> {
        Ok(config::read(path, |written: Self| written.complete(node))?)
    }

    fn complete(mut self, node: Option<String>) -> Result<Self, Mistake> {
        self.node = node.unwrap_or(self.node);
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<(), Mistake> {
        let in_range = |field: &str, value: u64, range: std::ops::RangeInclusive<u64>| {
            if range.contains(&value) {
                return Ok(());
            }
            let message = format!("{value} is not between {} and {}", range.start(), range.end());
            Err((field.to_owned(), message))
        };
        let wrong = |field: &str, message: &str| Err((field.to_owned(), message.to_owned()));
        if self.node.is_empty() {
            return wrong("node", "is empty");
        }
        match (&self.bootstrap, &self.controller) {
            (Some(_), Some(_)) => {
                return wrong("controller", "set either bootstrap or controller, not both");
            }
            (None, None) => return wrong("bootstrap", "set either bootstrap or controller"),
            (None, Some(controller)) => {
                controller.check().map_err(|(field, message)| (format!("controller.{field}"), message))?;
            }
            (Some(_), None) => {}
        }
        if let Some(text) = &self.memory_limit {
            let bytes = bytes(text).ok_or_else(|| {
                let message = format!("{text:?} is not a number of bytes such as 512Mi");
                ("memory_limit".to_owned(), message)
            })?;
            in_range("memory_limit", bytes, LEAST_MEMORY..=1 << 50)?;
        }
        in_range("workers", self.workers as u64, 1..=256)?;
        in_range("certificate_ttl_seconds", self.certificate_ttl_seconds, 1..=366 * day())?;
        in_range("drain_timeout_seconds", self.drain_timeout_seconds, 0..=3600)?;
        in_range("metrics_idle_seconds", self.metrics_idle_seconds, 1..=366 * day())?;
        in_range("connect_timeout_seconds", self.connect_timeout_seconds, 1..=300)?;
        let ejection = &self.ejection;
        in_range("ejection.consecutive_failures", ejection.consecutive_failures.into(), 1..=1000)?;
        in_range("ejection.first_seconds", ejection.first_seconds, 1..=3600)?;
        in_range("ejection.longest_seconds", ejection.longest_seconds, ejection.first_seconds..=24 * 3600)?;
        in_range("ejection.most_percent", ejection.most_percent.into(), 0..=100)?;
        in_range("direct.lease_seconds", self.direct.lease_seconds, 1..=3600)
    }

    pub(crate) fn metrics_idle(&self) -> Duration {
        Duration::from_secs(self.metrics_idle_seconds)
    }

    /// How many bytes tunnels may hold; none: the default.
    pub(crate) fn tunnel_memory(&self) -> Option<usize> {
        let bytes = bytes(self.memory_limit.as_deref()?)?;
        usize::try_from(bytes / 2).ok()
    }

    /// None: no endpoint is ejected.
    pub(crate) fn ejection(&self) -> Option<outlier::Settings> {
        self.ejection.enabled.then(|| outlier::Settings {
            consecutive_failures: self.ejection.consecutive_failures,
            first_ejection: Duration::from_secs(self.ejection.first_seconds),
            longest_ejection: Duration::from_secs(self.ejection.longest_seconds),
            most_ejected_percent: self.ejection.most_percent,
        })
    }

    pub(crate) fn certificate_ttl(&self) -> Duration {
        Duration::from_secs(self.certificate_ttl_seconds)
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_seconds)
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_seconds)
    }
}

#[cfg(test)]
mod tests;
