//! The configuration file: YAML, every field named and checked, unknown ones refused. Entry point:
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
    /// The DaemonSet of this agent. Without it, the agent never uninstalls anything.
    #[serde(default)]
    pub daemon_set: Option<String>,
    /// The service account of the plugin.
    #[serde(default = "default_cni_service_account")]
    pub cni_service_account: String,
    /// The folder of ztunnel's socket, as mounted here.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// The same folder as the host's processes see it; by default the same path.
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
    /// The plugin's binary in this image; by default beside the agent's.
    #[serde(default)]
    pub plugin: Option<PathBuf>,
    /// The host's processes: `/proc`, in a pod with `hostPID`.
    #[serde(default = "default_proc")]
    pub proc: PathBuf,
    /// The host's root, through one of its processes.
    #[serde(default = "default_host_root")]
    pub host_root: PathBuf,
    /// The BPF file system.
    #[serde(default = "default_bpffs")]
    pub bpffs: PathBuf,
    /// ztunnel's instance: the folder in the BPF file system.
    #[serde(default = "default_instance")]
    pub instance: String,
    /// Pods of these namespaces are never captured; Ambit's own is always among them.
    #[serde(default)]
    pub excluded_namespaces: Vec<String>,
    /// The API server's address for the host (`https://host:port`), if it differs from this process'.
    #[serde(default)]
    pub api_server: Option<String>,
    /// The kubeconfig, outside a pod.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// The address of `/metrics`.
    #[serde(default = "default_metrics")]
    pub metrics: SocketAddr,
    /// The address of `/healthz/ready` and `/healthz/started`.
    #[serde(default = "default_readiness")]
    pub readiness: SocketAddr,
    /// The address of the admin interface, which changes the log filter; by default none.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// Format and filter of the log.
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
    /// Reads and checks the file. `node` overrides the file's.
    pub fn read(path: &Path, node: Option<String>) -> Result<Self, Error> {
        config::read(path, |written: Self| written.complete(node))
    }

    /// Applies the command line and the defaults that depend on other fields.
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
            // Folders are removed at an uninstallation: they must not depend on the working directory, nor be
            // the root.
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
mod tests;
