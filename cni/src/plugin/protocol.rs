//! The CNI protocol: environment variables, and a configuration on standard input.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::failure::{Code, Failure};
use crate::entry::Entry;

/// Supported versions of the specification. The result is that of the plugins before, passed on unchanged, so
/// its form does not matter.
pub(super) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The version of answers to input that cannot be read.
pub(super) const NEWEST: &str = "1.1.0";

/// The environment, by name.
pub type Environment = BTreeMap<String, String>;

/// The configuration.
#[derive(Debug, Deserialize)]
pub(super) struct Configuration {
    #[serde(rename = "cniVersion", default)]
    pub(super) cni_version: String,
    /// The result of the plugins before this one.
    #[serde(rename = "prevResult", default)]
    pub(super) previous: Option<Box<RawValue>>,
}

impl Configuration {
    pub(super) fn parse(input: &[u8]) -> Result<Self, Failure> {
        serde_json::from_slice(input).map_err(|error| {
            Failure::new(
                Code::Decode,
                "failed to parse the configuration on standard input",
                error.to_string(),
            )
        })
    }

    /// Refuses a version that is not supported.
    pub(super) fn check_version(&self) -> Result<(), Failure> {
        // Without a version it is of the oldest specification.
        if self.cni_version.is_empty() || VERSIONS.contains(&self.cni_version.as_str()) {
            return Ok(());
        }
        let details = format!("{} is not one of {}", self.cni_version, VERSIONS.join(", "));
        Err(Failure::new(Code::IncompatibleVersion, "incompatible CNI version", details))
    }

    /// The result of the plugins before this one. It is required: this plugin creates no network.
    pub(super) fn previous(&self) -> Result<&str, Failure> {
        self.previous.as_deref().map(RawValue::get).ok_or_else(|| {
            let details = "prevResult is missing: ambit-cni must be chained behind another plugin";
            Failure::new(Code::InvalidConfiguration, "invalid network configuration", details)
        })
    }
}

/// The plugin's entry in the configuration list.
pub(super) fn entry(input: &[u8]) -> Result<Entry, Failure> {
    serde_json::from_slice(input).map_err(|error| {
        Failure::new(Code::InvalidConfiguration, "invalid network configuration", error.to_string())
    })
}

/// A required variable.
pub(super) fn variable<'a>(environment: &'a Environment, name: &str) -> Result<&'a str, Failure> {
    let value = environment.get(name).filter(|value| !value.is_empty());
    value.map(String::as_str).ok_or_else(|| {
        Failure::new(Code::InvalidEnvironment, "invalid environment", format!("{name} is not set"))
    })
}

/// A pod's sandbox, as the runtime identifies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sandbox {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Older runtimes do not give it.
    pub(super) uid: Option<String>,
}

impl Sandbox {
    /// `None`: not a pod of Kubernetes.
    pub(super) fn read(environment: &Environment) -> Result<Option<Self>, Failure> {
        let arguments = environment.get("CNI_ARGS").map(String::as_str).unwrap_or_default();
        let wrong = |details: String| Failure::new(Code::InvalidEnvironment, "invalid environment", details);
        let mut found = BTreeMap::new();
        for pair in arguments.split(';').filter(|pair| !pair.is_empty()) {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| wrong(format!("CNI_ARGS: {pair:?} is not NAME=VALUE")))?;
            found.insert(name, value);
        }
        let argument = |name: &str| found.get(name).filter(|value| !value.is_empty()).copied();
        let (namespace, name) = match (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")) {
            (None, None) => return Ok(None),
            (Some(namespace), Some(name)) => (namespace, name),
            _ => {
                let details = "CNI_ARGS: K8S_POD_NAMESPACE and K8S_POD_NAME must both be set";
                return Err(wrong(details.to_owned()));
            }
        };
        for (argument, value) in [("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", name)] {
            // They become part of a URL.
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
            if value.len() > 253 || value.starts_with('.') || !value.chars().all(plain) {
                return Err(wrong(format!("CNI_ARGS: {argument}: {value:?} is not a name")));
            }
        }
        let uid = argument("K8S_POD_UID").map(str::to_owned);
        Ok(Some(Self { namespace: namespace.to_owned(), name: name.to_owned(), uid }))
    }
}

/// The path of the sandbox's network namespace.
pub(super) fn network_namespace(environment: &Environment) -> Result<PathBuf, Failure> {
    variable(environment, "CNI_NETNS").map(PathBuf::from)
}
