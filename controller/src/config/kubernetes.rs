//! The block `kubernetes` of the configuration, and its defaults from the controller's own pod.

use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs};

use serde::Deserialize;

use super::name::is_name;

/// Where Kubernetes mounts a pod's namespace.
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
    waypoint: Option<WaypointImage>,
}

/// How the pods of waypoints get their program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WaypointImage {
    pub(crate) image: String,
    pub(crate) pull_policy: String,
    #[serde(default)]
    pub(crate) pull_secrets: Vec<String>,
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
            waypoint: None,
        }
    }
}

/// The settings for a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The namespace of the controller, its secrets and the daemons.
    pub(crate) namespace: String,
    /// This replica's name as a candidate for the lease.
    pub(crate) pod_name: String,
    /// None: the service account of the controller's pod.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The daemons' service account, in `namespace`.
    pub(crate) ztunnel_service_account: String,
    /// The audience of daemons' tokens.
    pub(crate) token_audience: String,
    pub(crate) ca_secret: String,
    /// The Secret for the user's own CA.
    pub(crate) own_ca_secret: String,
    pub(crate) root_config_map: String,
    pub(crate) lease: String,
    /// How long a new root is trusted before it signs.
    pub(crate) root_trust_wait: Duration,
    /// None: waypoints are made by others.
    pub(crate) waypoint: Option<WaypointImage>,
}

/// Defaults from the process' environment.
#[derive(Debug)]
pub(super) struct Environment {
    pub(super) namespace: Option<String>,
    pub(super) pod: Option<String>,
}

impl Environment {
    pub(super) fn of_this_process() -> Self {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let mounted = || fs::read_to_string(NAMESPACE_FILE).ok().map(|text| text.trim().to_owned());
        Self { namespace: variable("POD_NAMESPACE").or_else(mounted), pod: variable("POD_NAME") }
    }
}

impl Written {
    pub(super) fn check(self, environment: &Environment) -> Result<Settings, (String, String)> {
        let wrong = |field: &str, message: String| (format!("kubernetes.{field}"), message);
        let namespace = self.namespace.or_else(|| environment.namespace.clone());
        let namespace = namespace.ok_or_else(|| {
            wrong("namespace", format!("missing, and neither POD_NAMESPACE nor {NAMESPACE_FILE} gives it"))
        })?;
        let pod_name = self.pod_name.or_else(|| environment.pod.clone());
        let pod_name =
            pod_name.ok_or_else(|| wrong("pod_name", "missing, and POD_NAME is not set".to_owned()))?;
        if self.waypoint.as_ref().is_some_and(|waypoint| waypoint.image.is_empty()) {
            return Err(wrong("waypoint.image", "is empty".to_owned()));
        }
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
            if !is_name(text) {
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
            waypoint: self.waypoint,
        })
    }
}

#[cfg(test)]
impl Settings {
    /// The defaults, in the namespace `ambit-system`.
    pub(crate) fn for_tests() -> Self {
        let environment =
            Environment { namespace: Some("ambit-system".to_owned()), pod: Some("controller-0".to_owned()) };
        Written::default().check(&environment).expect("the defaults are valid")
    }
}
