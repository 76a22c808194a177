//! The configuration file: YAML, every field named and checked, an unknown one refused. Way in:
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

use self::kubernetes::Surroundings;

pub(crate) mod kubernetes;

/// kube's client reports every attempt that fails as an error; who asked says so once.
const QUIET: &str = ",kube_client=off";

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

/// Where objects come from, and with them who calls and what the CA's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Files(Files),
    Kubernetes(kubernetes::Settings),
}

/// A folder of object files, and one for what must survive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) objects: PathBuf,
    pub(crate) state: PathBuf,
}

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) source: Source,
    /// Where xDS and the CA are served; port 0 takes a free one.
    pub(crate) listen: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Where kubelets ask whether it is ready; nowhere, if not said.
    pub(crate) readiness: Option<SocketAddr>,
    pub(crate) derive: derive::Settings,
    /// The name on the controller's certificate.
    pub(crate) server_name: String,
    pub(crate) max_certificate_ttl: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) log: logs::Settings,
}

impl Config {
    /// Reads and checks the file.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        config::read(path, |written: Written| written.check(&Surroundings::of_this_process()))
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
    fn check(self, surroundings: &Surroundings) -> Result<Config, Mistake> {
        let wrong = |field: &str, message: String| Err((field.to_owned(), message));
        let source = source(self.objects, self.state, self.kubernetes, surroundings)?;
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
        let unsaid = logs::Settings { format: log.format, ..logs::Settings::default() };
        if matches!(source, Source::Kubernetes(_)) && log == unsaid {
            log.filter.push_str(QUIET);
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
            log,
        })
    }
}

/// Exactly one source.
fn source(
    objects: Option<PathBuf>,
    state: Option<PathBuf>,
    kubernetes: Option<kubernetes::Written>,
    surroundings: &Surroundings,
) -> Result<Source, Mistake> {
    let wrong = |field: &str, message: &str| Err((field.to_owned(), message.to_owned()));
    let (objects, state) = match (objects, state, kubernetes) {
        (None, None, None) => return wrong("", "neither `objects` and `state` nor `kubernetes` is given"),
        (None, None, Some(kubernetes)) => return kubernetes.check(surroundings).map(Source::Kubernetes),
        (_, _, Some(_)) => {
            return wrong("kubernetes", "is given beside `objects` or `state`: only one counts");
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

/// What may stand in a name of any kind.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':'))
}

/// The mesh's other trust domains.
fn aliases(own: &TrustDomain, written: &[String]) -> Result<Arc<[TrustDomain]>, Mistake> {
    let mut aliases: Vec<TrustDomain> = Vec::with_capacity(written.len());
    for (index, text) in written.iter().enumerate() {
        let wrong = |message: String| (format!("trust_domain_aliases[{index}]"), message);
        let alias = text.parse().map_err(|error| wrong(format!("{error}")))?;
        if alias == *own || aliases.contains(&alias) {
            return Err(wrong(format!("{alias} is named twice")));
        }
        aliases.push(alias);
    }
    Ok(aliases.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_in(text: &str, surroundings: &Surroundings) -> Result<Config, Mistake> {
        config::parse(text).and_then(|written: Written| written.check(surroundings))
    }

    fn parse(text: &str) -> Result<Config, Mistake> {
        let surroundings = Surroundings { namespace: Some("mesh".to_owned()), pod: Some("ctl-1".to_owned()) };
        parse_in(text, &surroundings)
    }

    #[test]
    fn defaults() {
        let config = parse("objects: /o\nstate: /s\n").unwrap();
        assert_eq!(config.listen.to_string(), "[::]:15012");
        assert_eq!(config.metrics.to_string(), "[::]:15014");
        assert_eq!(config.admin.to_string(), "127.0.0.1:15000");
        assert_eq!(config.derive, derive::Settings::default());
        assert_eq!(config.server_name, "ambit-controller");
        assert_eq!(config.max_certificate_ttl, Duration::from_hours(24));
        assert_eq!(config.log, logs::Settings::default());
    }

    #[test]
    fn everything_said() {
        let config = parse(
            "{objects: o, state: s, listen: '127.0.0.1:0', metrics: '127.0.0.1:1', admin: '[::1]:2', \
             trust_domain: example.org, trust_domain_aliases: [old.example, older.example], root_namespace: \
             root, cluster: c-1, server_name: ctl.example.org, max_certificate_ttl_seconds: 10, \
             drain_timeout_seconds: 1, log: {format: json, filter: debug}}",
        )
        .unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:0");
        assert_eq!(config.derive.trust_domain.as_str(), "example.org");
        let aliases: Vec<&str> = config.derive.trust_domain_aliases.iter().map(TrustDomain::as_str).collect();
        assert_eq!(aliases, ["old.example", "older.example"]);
        assert_eq!((config.derive.root_namespace.as_str(), config.derive.cluster.as_str()), ("root", "c-1"));
        assert_eq!(config.max_certificate_ttl, Duration::from_secs(10));
        assert_eq!(config.log, logs::Settings { format: logs::Format::Json, filter: "debug".to_owned() });
    }

    #[test]
    fn on_kubernetes() {
        let config = parse("kubernetes: {}").unwrap();
        let Source::Kubernetes(settings) = &config.source else { panic!("{:?}", config.source) };
        assert_eq!((settings.namespace.as_str(), settings.pod_name.as_str()), ("mesh", "ctl-1"));
        assert_eq!(config.server_name, "ambit-controller.mesh.svc");
        assert_eq!(config.derive.root_namespace, "mesh");
        assert_eq!(config.readiness.unwrap().to_string(), "[::]:15021");

        let config = parse(
            "{kubernetes: {namespace: own, pod_name: p, root_trust_wait_seconds: 5}, server_name: other, \
             root_namespace: root, readiness: '127.0.0.1:9'}",
        )
        .unwrap();
        let Source::Kubernetes(settings) = &config.source else { panic!("{:?}", config.source) };
        assert_eq!((settings.namespace.as_str(), settings.pod_name.as_str()), ("own", "p"));
        assert_eq!(settings.root_trust_wait, Duration::from_secs(5));
        assert_eq!((config.server_name.as_str(), config.derive.root_namespace.as_str()), ("other", "root"));
        assert_eq!(config.readiness.unwrap().to_string(), "127.0.0.1:9");

        assert_eq!(config.log.filter, "info,kube_client=off");
        let nowhere = Surroundings { namespace: None, pod: None };
        let (field, _) = parse_in("kubernetes: {pod_name: p}", &nowhere).unwrap_err();
        assert_eq!(field, "kubernetes.namespace");
        let (field, _) = parse_in("kubernetes: {namespace: n}", &nowhere).unwrap_err();
        assert_eq!(field, "kubernetes.pod_name");
    }

    #[test]
    fn mistakes_name_their_field() {
        let rows = [
            ("unknown field", "objects: o\nstate: s\nlisten_on: x", "listen_on", "unknown field"),
            (
                "unknown nested field",
                "objects: o\nstate: s\nlog: {colour: red}",
                "log.colour",
                "unknown field",
            ),
            ("missing", "state: s", "", "missing field `objects`"),
            ("no source", "listen: '[::]:1'", "", "neither"),
            ("two sources", "objects: o\nstate: s\nkubernetes: {}", "kubernetes", "only one counts"),
            ("half a source", "objects: o\nkubernetes: {}", "kubernetes", "only one counts"),
            ("no state", "objects: o", "", "missing field `state`"),
            ("unknown field", "kubernetes: {name_space: x}", "kubernetes.name_space", "unknown field"),
            ("no namespace", "kubernetes: {namespace: 'A b'}", "kubernetes.namespace", "is not a name"),
            ("empty", "objects: ''\nstate: s", "objects", "is empty"),
            ("the same folder", "objects: s\nstate: s", "state", "must not be"),
            ("address", "objects: o\nstate: s\nlisten: here", "listen", "invalid socket address"),
            (
                "lifetime",
                "objects: o\nstate: s\nmax_certificate_ttl_seconds: 0",
                "max_certificate_ttl_seconds",
                "0 is not",
            ),
            (
                "lifetime's type",
                "objects: o\nstate: s\nmax_certificate_ttl_seconds: day",
                "max_certificate_ttl_seconds",
                "invalid type",
            ),
            (
                "trust domain",
                "objects: o\nstate: s\ntrust_domain: A B",
                "trust_domain",
                "is not a trust domain",
            ),
            (
                "trust domain alias",
                "objects: o\nstate: s\ntrust_domain_aliases: [a.b, A]",
                "trust_domain_aliases[1]",
                "is not a trust domain",
            ),
            (
                "an alias that is the trust domain",
                "objects: o\nstate: s\ntrust_domain_aliases: [cluster.local]",
                "trust_domain_aliases[0]",
                "named twice",
            ),
            ("namespace", "objects: o\nstate: s\nroot_namespace: ''", "root_namespace", "is not a name"),
            ("log format", "objects: o\nstate: s\nlog: {format: xml}", "log.format", "unknown variant `xml`"),
            ("no YAML", "objects: o: p", "", "line 1"),
        ];
        for (name, text, field, message) in rows {
            let (found, said) = parse(text).unwrap_err();
            assert_eq!(found, field, "{name}: {said}");
            assert!(said.contains(message), "{name}: {said}");
        }
    }
}
