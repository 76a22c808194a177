//! The block `kubernetes` of the configuration, and what the pod it runs in says.

use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs};

use serde::Deserialize;

/// Where a pod finds its namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// The block, as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Written {
    namespace: Option<String>,
    pod_name: Option<String>,
    kubeconfig: Option<PathBuf>,
    ztunnel_service_account: String,
    token_audience: String,
    ca_secret: String,
    own_ca_secret: String,
    root_config_map: String,
    lease: String,
    root_trust_wait_seconds: u64,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            namespace: None,
            pod_name: None,
            kubeconfig: None,
            ztunnel_service_account: "ztunnel".to_owned(),
            token_audience: "ambit-ca".to_owned(),
            ca_secret: "ambit-ca".to_owned(),
            own_ca_secret: "cacerts".to_owned(),
            root_config_map: "ambit-root".to_owned(),
            lease: "ambit-controller".to_owned(),
            root_trust_wait_seconds: 300,
        }
    }
}

/// How the controller works with a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where the controller, its secrets and the daemons are.
    pub(crate) namespace: String,
    /// Names this replica among those that want the lease.
    pub(crate) pod_name: String,
    /// None: as a pod of the cluster.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The daemons' service account, in `namespace`.
    pub(crate) ztunnel_service_account: String,
    /// What daemons' tokens must be meant for.
    pub(crate) token_audience: String,
    pub(crate) ca_secret: String,
    /// The secret in which users put a CA of their own.
    pub(crate) own_ca_secret: String,
    pub(crate) root_config_map: String,
    pub(crate) lease: String,
    /// How long a new root is only trusted before it signs.
    pub(crate) root_trust_wait: Duration,
}

/// What the configuration need not say.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) namespace: Option<String>,
    pub(super) pod: Option<String>,
}

impl Surroundings {
    pub(super) fn of_this_process() -> Self {
        let said = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let mounted = || fs::read_to_string(NAMESPACE_FILE).ok().map(|text| text.trim().to_owned());
        Self { namespace: said("POD_NAMESPACE").or_else(mounted), pod: said("POD_NAME") }
    }
}

impl Written {
    pub(super) fn check(self, surroundings: &Surroundings) -> Result<Settings, (String, String)> {
        let wrong = |field: &str, message: String| (format!("kubernetes.{field}"), message);
        let namespace = self.namespace.or_else(|| surroundings.namespace.clone());
        let namespace = namespace.ok_or_else(|| {
            wrong("namespace", format!("is not said, nor by POD_NAMESPACE or {NAMESPACE_FILE}"))
        })?;
        let pod_name = self.pod_name.or_else(|| surroundings.pod.clone());
        let pod_name =
            pod_name.ok_or_else(|| wrong("pod_name", "is not said, nor by POD_NAME".to_owned()))?;
        for (field, text) in [
            ("namespace", &namespace),
            ("pod_name", &pod_name),
            ("ztunnel_service_account", &self.ztunnel_service_account),
            ("token_audience", &self.token_audience),
            ("ca_secret", &self.ca_secret),
            ("own_ca_secret", &self.own_ca_secret),
            ("root_config_map", &self.root_config_map),
            ("lease", &self.lease),
        ] {
            if !super::is_name(text) {
                return Err(wrong(field, format!("{text:?} is not a name")));
            }
        }
        Ok(Settings {
            namespace,
            pod_name,
            kubeconfig: self.kubeconfig,
            ztunnel_service_account: self.ztunnel_service_account,
            token_audience: self.token_audience,
            ca_secret: self.ca_secret,
            own_ca_secret: self.own_ca_secret,
            root_config_map: self.root_config_map,
            lease: self.lease,
            root_trust_wait: Duration::from_secs(self.root_trust_wait_seconds),
        })
    }
}
