//! The waypoint's configuration file (YAML): [`Config::read`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_core::inbound::HBONE_PORT;
use ambit_core::model::ServiceKey;
use ambit_daemon_kit::config::{self, Mistake};
use ambit_daemon_kit::controller;
use ambit_daemon_kit::telemetry::logs;
use serde::Deserialize;

use crate::error::Error;

/// The file, field by field.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The waypoint's own workload: `<cluster>//Pod/<namespace>/<name>` for a pod.
    #[serde(default)]
    pub workload: String,
    /// The service that the waypoint's pods serve, `<namespace>/<host name>`: what it stands in front of
    /// names it.
    pub service: String,
    /// The node's name, as in workloads; with a bootstrap file, that file's.
    #[serde(default)]
    pub node: String,
    /// The bootstrap file that `controller bootstrap` writes; or [`Config::controller`].
    pub bootstrap: Option<PathBuf>,
    /// How the controller is reached where the token and the roots lie in files of their own.
    pub controller: Option<controller::Settings>,
    /// Where HBONE connections are taken.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// The address that connections to endpoints come from; the system chooses where there is none.
    pub address: Option<IpAddr>,
    /// Threads, each with connections of its own; as many as processors if absent.
    pub workers: Option<usize>,
    /// The admin server.
    #[serde(default = "admin")]
    pub admin: SocketAddr,
    /// Where Prometheus asks.
    #[serde(default = "metrics")]
    pub metrics: SocketAddr,
    /// Where kubelet asks.
    #[serde(default = "readiness")]
    pub readiness: SocketAddr,
    /// Level and format of the log.
    #[serde(default)]
    pub log: logs::Settings,
    #[serde(default = "day")]
    certificate_ttl_seconds: u64,
    #[serde(default = "ten")]
    drain_timeout_seconds: u64,
    #[serde(default = "ten")]
    connect_timeout_seconds: u64,
    #[serde(default = "hour")]
    metrics_idle_seconds: u64,
}

/// What the command line says instead of the file: one file may serve all pods of a waypoint.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// [`Config::workload`]
    pub workload: Option<String>,
    /// [`Config::node`]
    pub node: Option<String>,
    /// [`Config::address`]
    pub address: Option<IpAddr>,
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

fn listen() -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), HBONE_PORT)
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
    /// Reads and validates the file.
    pub fn read(path: &Path, overrides: Overrides) -> Result<Self, Error> {
        Ok(config::read(path, |written: Self| written.complete(overrides))?)
    }

    fn complete(mut self, overrides: Overrides) -> Result<Self, Mistake> {
        self.workload = overrides.workload.unwrap_or(self.workload);
        self.node = overrides.node.unwrap_or(self.node);
        self.address = overrides.address.or(self.address);
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<(), Mistake> {
        let wrong = |field: &str, message: &str| Err((field.to_owned(), message.to_owned()));
        let in_range = |field: &str, value: u64, range: std::ops::RangeInclusive<u64>| {
            if range.contains(&value) {
                return Ok(());
            }
            let message = format!("{value} is not between {} and {}", range.start(), range.end());
            Err((field.to_owned(), message))
        };
        if self.workload.is_empty() {
            return wrong("workload", "is empty");
        }
        if self.service().is_none() {
            return wrong("service", "is not <namespace>/<host name>");
        }
        match (&self.bootstrap, &self.controller) {
            (Some(_), Some(_)) => return wrong("controller", "set either bootstrap or controller, not both"),
            (None, None) => return wrong("bootstrap", "set either bootstrap or controller"),
            (None, Some(controller)) => {
                controller.check().map_err(|(field, message)| (format!("controller.{field}"), message))?;
            }
            (Some(_), None) => {}
        }
        in_range("workers", self.workers() as u64, 1..=256)?;
        in_range("certificate_ttl_seconds", self.certificate_ttl_seconds, 1..=366 * day())?;
        in_range("drain_timeout_seconds", self.drain_timeout_seconds, 0..=3600)?;
        in_range("connect_timeout_seconds", self.connect_timeout_seconds, 1..=300)?;
        in_range("metrics_idle_seconds", self.metrics_idle_seconds, 1..=366 * day())
    }

    /// [`Config::service`] as the mesh names it.
    pub(crate) fn service(&self) -> Option<ServiceKey> {
        let (namespace, hostname) = self.service.split_once('/')?;
        let valid = !namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/');
        valid.then(|| ServiceKey { namespace: namespace.into(), hostname: hostname.into() })
    }

    /// Threads that carry requests.
    pub fn workers(&self) -> usize {
        self.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// The lifetime of certificates to ask the CA for.
    pub fn certificate_ttl(&self) -> Duration {
        Duration::from_secs(self.certificate_ttl_seconds)
    }

    /// How long requests may take to end after SIGTERM.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_seconds)
    }

    /// How long reaching a backend may take, every endpoint tried.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_seconds)
    }

    /// How long metrics keep showing the names of TCP connections that have ended.
    pub fn metrics_idle(&self) -> Duration {
        Duration::from_secs(self.metrics_idle_seconds)
    }
}

#[cfg(test)]
mod tests;
