//! The configuration file: YAML, every field named and checked, unknown ones refused. Entry point:
//! [`Config::read`].

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ambit_core::derive;
use ambit_core::model::TrustDomain;
use ambit_daemon_kit::Error;
use ambit_daemon_kit::config::{self, Mistake};
use ambit_daemon_kit::telemetry::logs;
use serde::Deserialize;

use self::kubernetes::Environment;
use self::name::is_name;

pub(crate) mod kubernetes;
mod name;

/// kube's client logs every failed attempt as an error; the caller logs the failure once.
const QUIET_CLIENT: &str = ",kube_client=off";

/// The file, as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    objects: Option<PathBuf>,
    state: Option<PathBuf>,
    kubernetes: Option<kubernetes::Written>,
    #[serde(default = "default_listen")]
    listen: SocketAddr,
    #[serde(default = "default_metrics")]
    metrics: SocketAddr,
    #[serde(default = "default_admin")]
    admin: SocketAddr,
    readiness: Option<SocketAddr>,
    #[serde(default = "default_trust_domain")]
    trust_domain: String,
    #[serde(default)]
    trust_domain_aliases: Vec<String>,
    root_namespace: Option<String>,
    #[serde(default = "default_cluster")]
    cluster: String,
    server_name: Option<String>,
    #[serde(default = "default_ttl")]
    max_certificate_ttl_seconds: u64,
    #[serde(default = "default_drain")]
    drain_timeout_seconds: u64,
    #[serde(default = "default_age")]
    max_connection_age_seconds: u64,
    #[serde(default)]
    log: logs::Settings,
}

fn default_listen() -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, 15012).into()
}

fn default_metrics() -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, 15014).into()
}

fn default_admin() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 15000).into()
}

fn default_readiness() -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, 15021).into()
}

fn default_trust_domain() -> String {
    TrustDomain::default().as_str().to_owned()
}

fn default_cluster() -> String {
    derive::Settings::default().cluster
}

fn default_ttl() -> u64 {
    24 * 3600
}

fn default_drain() -> u64 {
    5
}

fn default_age() -> u64 {
    ambit_xds::server::MAX_AGE.as_secs()
}

/// Where objects come from; the clients' authentication and the CA's keys follow from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Files(Files),
    Kubernetes(Box<kubernetes::Settings>),
}

/// The folder of object files, and the one for persistent state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) objects: PathBuf,
    pub(crate) state: PathBuf,
}

/// A valid configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) source: Source,
    /// The address of xDS and the CA; port 0 takes a free one.
    pub(crate) listen: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// The address of the readiness probe; none by default outside Kubernetes.
    pub(crate) readiness: Option<SocketAddr>,
    pub(crate) derive: derive::Settings,
    /// The name on the controller's certificate.
    pub(crate) server_name: String,
    pub(crate) max_certificate_ttl: Duration,
    pub(crate) drain_timeout: Duration,
    /// The longest that a configuration stream lasts.
    pub(crate) max_connection_age: Duration,
    pub(crate) log: logs::Settings,
}

impl Config {
    /// Reads and checks the file.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        config::read(path, |written: Written| written.check(&Environment::of_this_process()))
    }

    /// The folders, where objects come from files.
    pub(crate) fn files(&self) -> Option<&Files> {
        match &self.source {
            Source::Files(files) => Some(files),
            Source::Kubernetes(_) => None,
        }
    }
}

impl Written {
    fn check(self, environment: &Environment) -> Result<Config, Mistake> {
        let wrong = |field: &str, message: String| Err((field.to_owned(), message));
        let source = source(self.objects, self.state, self.kubernetes, environment)?;
        let (root_namespace, server_name, readiness) = match &source {
            Source::Files(_) => {
                (derive::Settings::default().root_namespace, "ambit-controller".to_owned(), None)
            }
            Source::Kubernetes(kubernetes) => {
                let namespace = &kubernetes.namespace;
                (namespace.clone(), format!("ambit-controller.{namespace}.svc"), Some(default_readiness()))
            }
        };
        let mut log = self.log;
        let default_filter = logs::Settings { format: log.format, ..logs::Settings::default() };
        if matches!(source, Source::Kubernetes(_)) && log == default_filter {
            log.filter.push_str(QUIET_CLIENT);
        }
        let root_namespace = self.root_namespace.unwrap_or(root_namespace);
        let server_name = self.server_name.unwrap_or(server_name);
        for (field, text) in
            [("root_namespace", &root_namespace), ("cluster", &self.cluster), ("server_name", &server_name)]
        {
            if !is_name(text) {
                return wrong(field, format!("{text:?} is not a name"));
            }
        }
        let seconds = self.max_certificate_ttl_seconds;
        if !(1..=365 * 24 * 3600).contains(&seconds) {
            return wrong("max_certificate_ttl_seconds", format!("{seconds} is not between 1 and a year"));
        }
        let age = self.max_connection_age_seconds;
        if !(1..=365 * 24 * 3600).contains(&age) {
            return wrong("max_connection_age_seconds", format!("{age} is not between 1 and a year"));
        }
        let trust_domain: TrustDomain =
            self.trust_domain.parse().map_err(|error| ("trust_domain".to_owned(), format!("{error}")))?;
        let trust_domain_aliases = aliases(&trust_domain, &self.trust_domain_aliases)?;
        let derive = derive::Settings {
            trust_domain,
            trust_domain_aliases,
            root_namespace,
            cluster: self.cluster,
            ..derive::Settings::default()
        };
        Ok(Config {
            source,
            listen: self.listen,
            metrics: self.metrics,
            admin: self.admin,
            readiness: self.readiness.or(readiness),
            derive,
            server_name,
            max_certificate_ttl: Duration::from_secs(seconds),
            drain_timeout: Duration::from_secs(self.drain_timeout_seconds),
            max_connection_age: Duration::from_secs(age),
            log,
        })
    }
}

/// Exactly one source.
fn source(
    objects: Option<PathBuf>,
    state: Option<PathBuf>,
    kubernetes: Option<kubernetes::Written>,
    environment: &Environment,
) -> Result<Source, Mistake> {
    let wrong = |field: &str, message: &str| Err((field.to_owned(), message.to_owned()));
    let (objects, state) = match (objects, state, kubernetes) {
        (None, None, None) => return wrong("", "set either `objects` and `state`, or `kubernetes`"),
        (None, None, Some(kubernetes)) => {
            return kubernetes.check(environment).map(|settings| Source::Kubernetes(Box::new(settings)));
        }
        (_, _, Some(_)) => {
            return wrong("kubernetes", "set either `kubernetes`, or `objects` and `state`, not both");
        }
        (None, Some(_), None) => return wrong("", "missing field `objects`"),
        (Some(_), None, None) => return wrong("", "missing field `state`"),
        (Some(objects), Some(state), None) => (objects, state),
    };
    for (field, path) in [("objects", &objects), ("state", &state)] {
        if path.as_os_str().is_empty() {
            return wrong(field, "is empty");
        }
    }
    if objects == state {
        return wrong("state", "must not be the folder of the objects");
    }
    Ok(Source::Files(Files { objects, state }))
}

/// The mesh's other trust domains.
fn aliases(own: &TrustDomain, written: &[String]) -> Result<Arc<[TrustDomain]>, Mistake> {
    let mut aliases: Vec<TrustDomain> = Vec::with_capacity(written.len());
    for (index, text) in written.iter().enumerate() {
        let wrong = |message: String| (format!("trust_domain_aliases[{index}]"), message);
        let alias = text.parse().map_err(|error| wrong(format!("{error}")))?;
        if alias == *own || aliases.contains(&alias) {
            return Err(wrong(format!("{alias} is listed twice")));
        }
        aliases.push(alias);
    }
    Ok(aliases.into())
}

#[cfg(test)]
mod tests;
