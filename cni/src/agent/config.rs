//! The configuration file: YAML, every field named and checked, an unknown one refused. Way in:
//! [`Config::read`].

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ambit_daemon_kit::Error;
use ambit_daemon_kit::config::{self, Mistake};
use ambit_daemon_kit::telemetry::logs;
use serde::Deserialize;

/// A configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This node's name, as in its pods' `spec.nodeName`.
    #[serde(default)]
    pub node: String,
    /// The cluster's name in workloads' uids, as the controller's configuration has it.
    #[serde(default = "default_cluster")]
    pub cluster: String,
    /// Ambit's own namespace.
    pub namespace: String,
    /// The DaemonSet this agent belongs to. Without it, nothing is ever uninstalled.
    #[serde(default)]
    pub daemon_set: Option<String>,
    /// The service account of the plugin.
    #[serde(default = "default_cni_service_account")]
    pub cni_service_account: String,
    /// The folder of ztunnel's socket, as mounted here.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// The same folder as the host's processes see it; the same path where nothing is said.
    #[serde(default)]
    pub host_run_dir: Option<PathBuf>,
    /// The host's folder of CNI plugins, as mounted here.
    #[serde(default = "default_cni_bin_dir")]
    pub cni_bin_dir: PathBuf,
    /// The host's folder of CNI configurations, as mounted here.
    #[serde(default = "default_cni_conf_dir")]
    pub cni_conf_dir: PathBuf,
    /// The same folder as the host's processes see it: the plugin's entry says so.
    #[serde(default = "default_host_cni_conf_dir")]
    pub host_cni_conf_dir: PathBuf,
    /// The plugin's binary in this image; where nothing is said, it lies beside the agent's.
    #[serde(default)]
    pub plugin: Option<PathBuf>,
    /// The host's processes: `/proc`, in a pod with `hostPID`.
    #[serde(default = "default_proc")]
    pub proc: PathBuf,
    /// The host's root, through one of its processes.
    #[serde(default = "default_host_root")]
    pub host_root: PathBuf,
    #[serde(default = "default_bpffs")]
    pub bpffs: PathBuf,
    /// ztunnel's instance: the folder in the BPF file system.
    #[serde(default = "default_instance")]
    pub instance: String,
    /// Pods of these namespaces are never captured; Ambit's own is always among them.
    #[serde(default)]
    pub excluded_namespaces: Vec<String>,
    /// Where the host reaches the API server (`https://host:port`), if not where this process does.
    #[serde(default)]
    pub api_server: Option<String>,
    /// For running outside a pod.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    #[serde(default = "default_metrics")]
    pub metrics: SocketAddr,
    #[serde(default = "default_readiness")]
    pub readiness: SocketAddr,
    /// Where logs can be changed; nowhere unless said.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    #[serde(default)]
    pub log: logs::Settings,
}

fn default_cluster() -> String {
    "Kubernetes".to_owned()
}

fn default_cni_service_account() -> String {
    "ambit-cni".to_owned()
}

fn default_run_dir() -> PathBuf {
    "/run/ambit".into()
}

fn default_cni_bin_dir() -> PathBuf {
    "/host/opt/cni/bin".into()
}

fn default_cni_conf_dir() -> PathBuf {
    "/host/etc/cni/net.d".into()
}

fn default_host_cni_conf_dir() -> PathBuf {
    "/etc/cni/net.d".into()
}

fn default_proc() -> PathBuf {
    "/proc".into()
}

fn default_host_root() -> PathBuf {
    "/proc/1/root".into()
}

fn default_bpffs() -> PathBuf {
    "/sys/fs/bpf".into()
}

fn default_instance() -> String {
    "ambit".to_owned()
}

fn default_metrics() -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, 15022).into()
}

fn default_readiness() -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, 15023).into()
}

impl Config {
    /// Reads and checks the file. `node`: what the command line says, which goes before the file.
    pub fn read(path: &Path, node: Option<String>) -> Result<Self, Error> {
        config::read(path, |written: Self| written.complete(node))
    }

    /// With what the command line says and what goes without saying.
    fn complete(mut self, node: Option<String>) -> Result<Self, Mistake> {
        self.node = node.unwrap_or(self.node);
        self.check()?;
        if !self.excluded_namespaces.contains(&self.namespace) {
            self.excluded_namespaces.insert(0, self.namespace.clone());
        }
        Ok(self)
    }

    /// The run folder as the host's processes see it.
    pub(crate) fn host_run_dir(&self) -> &Path {
        self.host_run_dir.as_deref().unwrap_or(&self.run_dir)
    }

    fn check(&self) -> Result<(), Mistake> {
        let wrong = |field: &str, message: String| Err((field.to_owned(), message));
        let plain = |text: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
            !text.is_empty() && text.len() <= 253 && !text.starts_with('.') && text.chars().all(allowed)
        };
        let names = [
            ("node", &self.node),
            ("cluster", &self.cluster),
            ("namespace", &self.namespace),
            ("cni_service_account", &self.cni_service_account),
            ("instance", &self.instance),
        ];
        for (field, text) in names {
            if !plain(text) {
                return wrong(field, format!("{text:?} is not a name"));
            }
        }
        if let Some(name) = self.daemon_set.as_ref().filter(|name| !plain(name)) {
            return wrong("daemon_set", format!("{name:?} is not a name"));
        }
        for (index, name) in self.excluded_namespaces.iter().enumerate() {
            if !plain(name) {
                return wrong(&format!("excluded_namespaces[{index}]"), format!("{name:?} is not a name"));
            }
        }
        let host_run_dir = self.host_run_dir().to_owned();
        let paths = [
            ("run_dir", &self.run_dir),
            ("host_run_dir", &host_run_dir),
            ("cni_bin_dir", &self.cni_bin_dir),
            ("cni_conf_dir", &self.cni_conf_dir),
            ("host_cni_conf_dir", &self.host_cni_conf_dir),
            ("proc", &self.proc),
            ("host_root", &self.host_root),
            ("bpffs", &self.bpffs),
        ];
        for (field, path) in paths {
            // What is removed in the end must not depend on where a process was started, nor be everything
            // there is.
            if !path.is_absolute() || path.parent().is_none() && field != "host_root" {
                return wrong(field, format!("{} is not an absolute path of a folder", path.display()));
            }
        }
        match &self.api_server {
            Some(server) if !server.starts_with("https://") => {
                wrong("api_server", format!("{server:?} does not begin with https://"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, node: Option<String>) -> Result<Config, Mistake> {
        config::parse(text).and_then(|written: Config| written.complete(node))
    }

    #[test]
    fn defaults_and_the_command_line() {
        let config = parse("namespace: ambit-system\n", Some("n1".to_owned())).unwrap();
        assert_eq!((config.node.as_str(), config.cluster.as_str()), ("n1", "Kubernetes"));
        assert_eq!(config.excluded_namespaces, ["ambit-system"]);
        assert_eq!(config.daemon_set, None);
        assert_eq!(config.run_dir, Path::new("/run/ambit"));
        assert_eq!(config.metrics.to_string(), "[::]:15022");
        let config = parse("{namespace: a, node: file}", Some("flag".to_owned())).unwrap();
        assert_eq!(config.node, "flag");
    }

    #[test]
    fn everything_said() {
        let config = parse(
            "{node: n, cluster: c-1, namespace: mesh, daemon_set: zt, cni_service_account: plugin, run_dir: /r, host_run_dir: /hr, \
             cni_bin_dir: /b, cni_conf_dir: /c, host_cni_conf_dir: /hc, plugin: /p, proc: /hp, host_root: /, bpffs: /f, \
             instance: i, excluded_namespaces: [legacy, mesh], api_server: 'https://10.0.0.1:6443', kubeconfig: /k, \
             metrics: '127.0.0.1:1', readiness: '127.0.0.1:2', admin: '127.0.0.1:3', log: {format: json, filter: debug}}",
            None,
        )
        .unwrap();
        assert_eq!(config.excluded_namespaces, ["legacy", "mesh"]);
        assert_eq!(config.daemon_set.as_deref(), Some("zt"));
        assert_eq!(config.log, logs::Settings { format: logs::Format::Json, filter: "debug".to_owned() });
    }

    #[test]
    fn mistakes_name_their_field() {
        let rows = [
            ("unknown field", "node: n\nnamespace: a\nconf: x", "conf", "unknown field"),
            ("missing", "node: n", "", "missing field `namespace`"),
            ("no node", "namespace: a", "node", "is not a name"),
            ("a path as a name", "{node: n, namespace: a, instance: ../x}", "instance", "is not a name"),
            ("a relative path", "{node: n, namespace: a, run_dir: run}", "run_dir", "absolute"),
            ("the root", "{node: n, namespace: a, bpffs: /}", "bpffs", "absolute"),
            ("an address", "{node: n, namespace: a, metrics: here}", "metrics", "invalid socket address"),
            (
                "an excluded namespace",
                "{node: n, namespace: a, excluded_namespaces: [b, '']}",
                "excluded_namespaces[1]",
                "is not a name",
            ),
            ("plain HTTP", "{node: n, namespace: a, api_server: 'http://x'}", "api_server", "https://"),
            ("a DaemonSet's name", "{node: n, namespace: a, daemon_set: ''}", "daemon_set", "is not a name"),
            ("log format", "{node: n, namespace: a, log: {format: xml}}", "log.format", "unknown variant"),
        ];
        for (name, text, field, message) in rows {
            let (found, said) = parse(text, None).unwrap_err();
            assert_eq!(found, field, "{name}: {said}");
            assert!(said.contains(message), "{name}: {said}");
        }
    }
}
