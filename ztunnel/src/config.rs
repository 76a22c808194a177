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

/// How many endpoints of a service are tried for one connection.
pub(crate) const ENDPOINTS: u32 = 3;

/// The file, field by field.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Names this daemon's programs and maps among those of one kernel.
    pub(crate) instance: String,
    /// The node's name, as workloads say it. `--node` goes before it: one file may serve all nodes.
    #[serde(default)]
    pub(crate) node: String,
    /// The bootstrap file that `controller bootstrap` writes; or [`Config::controller`].
    pub(crate) bootstrap: Option<PathBuf>,
    /// How the controller is reached where the token and the roots lie in files of their own.
    pub(crate) controller: Option<controller::Settings>,
    /// `/proc/PID/net` of a process on the node's own network, for a daemon that is on another: the node's
    /// addresses are read there.
    pub(crate) node_network: Option<PathBuf>,
    /// Where the enrolment socket is made.
    pub(crate) run_dir: PathBuf,
    /// A mounted BPF file system; pins live here.
    pub(crate) bpffs: PathBuf,
    /// The root of cgroup v2; found from the mounts if absent.
    pub(crate) cgroup: Option<PathBuf>,
    /// Threads that carry connections.
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
    /// The lifetime asked of the CA.
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
    pub(crate) direct: Direct,
    #[serde(default)]
    ejection: Ejection,
}

/// The direct path between two pods of this node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Direct {
    pub(crate) enabled: bool,
    /// How long the kernel believes what this daemon said without hearing of it again.
    lease_seconds: u64,
}

impl Default for Direct {
    fn default() -> Self {
        Self { enabled: true, lease_seconds: 60 }
    }
}

impl Direct {
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }
}

/// Keeping endpoints out of the choice when connections to them fail.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Ejection {
    enabled: bool,
    /// How many failures in a row eject an endpoint.
    consecutive_failures: u32,
    /// How long the first time; doubled each time.
    first_seconds: u64,
    longest_seconds: u64,
    /// Which share of a service's endpoints at most.
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
    /// Reads and checks the file. A node's name given here goes before the file's.
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
                return wrong("controller", "stands beside bootstrap; one of them is right");
            }
            (None, None) => return wrong("bootstrap", "missing, and so is controller"),
            (None, Some(controller)) => {
                controller.check().map_err(|(field, message)| (format!("controller.{field}"), message))?;
            }
            (Some(_), None) => {}
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

    /// None: nobody is ejected.
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

    /// How long one endpoint may take to be reached, so that others can be tried in time.
    pub(crate) fn endpoint_timeout(&self) -> Duration {
        self.connect_timeout() / ENDPOINTS
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mistake in one line, as the error has it.
    fn parse(text: &str, node: Option<String>) -> Result<Config, String> {
        let read = config::parse(text).and_then(|written: Config| written.complete(node));
        read.map_err(|(field, message)| format!("{field}: {message}"))
    }

    const LEAST: &str =
        "instance: a\nnode: node0\nbootstrap: /b.yaml\nrun_dir: /run/a\nbpffs: /sys/fs/bpf/a\n";

    #[test]
    fn what_is_left_out_has_defaults() {
        let config = parse(LEAST, None).unwrap();
        assert_eq!(config.workers, 2);
        assert_eq!(config.admin, "127.0.0.1:15000".parse().unwrap());
        assert_eq!(config.metrics, "[::]:15020".parse().unwrap());
        assert_eq!(config.readiness, "[::]:15021".parse().unwrap());
        assert_eq!(config.certificate_ttl(), Duration::from_hours(24));
        assert_eq!(config.drain_timeout(), Duration::from_secs(10));
        assert_eq!(config.connect_timeout(), Duration::from_secs(10));
        assert_eq!(config.ejection(), Some(outlier::Settings::default()));
        assert_eq!(config.cgroup, None);
        assert!(config.direct.enabled);
        assert_eq!(config.direct.lease(), Duration::from_mins(1));
    }

    #[test]
    fn the_flag_names_the_node() {
        let text = "instance: a\nrun_dir: /r\nbpffs: /b\n\
                    controller: {address: 'a:1', server_name: a, root_file: r, token_file: t}\n";
        assert_eq!(parse(text, Some("n1".to_owned())).unwrap().node, "n1");
        assert_eq!(parse(LEAST, Some("n1".to_owned())).unwrap().node, "n1", "before the file's");
        assert_eq!(parse(text, None).unwrap_err(), "node: is empty");
    }

    #[test]
    fn mistakes_are_named() {
        let rows = [
            ("unknown field", "worker: 3", "unknown field `worker`"),
            ("not a number", "workers: many", "workers"),
            ("no worker", "workers: 0", "workers: 0 is not between 1 and 256"),
            ("address without a port", "metrics: 127.0.0.1", "metrics"),
            ("lifetime of nothing", "certificate_ttl_seconds: 0", "certificate_ttl_seconds: 0"),
            ("no time to connect", "connect_timeout_seconds: 0", "connect_timeout_seconds: 0"),
            ("endless drain", "drain_timeout_seconds: 99999", "drain_timeout_seconds: 99999"),
            ("no lease", "direct: {lease_seconds: 0}", "direct.lease_seconds: 0"),
            ("a switch that is none", "direct: {enabled: perhaps}", "enabled"),
            ("ejection, misspelt", "ejection: {percent: 3}", "unknown field `percent`"),
            (
                "ejection after nothing",
                "ejection: {consecutive_failures: 0}",
                "ejection.consecutive_failures: 0",
            ),
            (
                "a longest ejection below the first",
                "ejection: {longest_seconds: 5}",
                "not between 10 and 86400",
            ),
            ("more than all", "ejection: {most_percent: 101}", "ejection.most_percent: 101"),
            ("log format", "log: {format: xml}", "xml"),
            (
                "two controllers",
                "controller: {address: 'a:1', server_name: a, root_file: r, token_file: t}",
                "controller: stands beside",
            ),
        ];
        for (name, line, expected) in rows {
            let message = parse(&format!("{LEAST}{line}\n"), None).expect_err(name);
            assert!(message.contains(expected), "{name}: {message}");
        }
        let rows = [
            ("no controller", "", "bootstrap: missing"),
            (
                "no port",
                "controller: {address: a, server_name: a, root_file: r, token_file: t}",
                "controller.address",
            ),
            ("no file", "controller: {address: 'a:1', server_name: a, root_file: r}", "token_file"),
        ];
        for (name, line, expected) in rows {
            let text = format!("instance: a\nrun_dir: /run/a\nbpffs: /sys/fs/bpf/a\n{line}\n");
            let message = parse(&text, Some("n".to_owned())).expect_err(name);
            assert!(message.contains(expected), "{name}: {message}");
        }
        let message = parse("node: a", None).expect_err("fields are missing");
        assert!(message.contains("missing field"), "{message}");
    }
}
