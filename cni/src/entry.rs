//! The plugin's entry in a CNI configuration list: written by the agent, read by the plugin from its standard
//! input.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The plugin's name: its `type` in configuration lists and the name of its file.
pub const PLUGIN: &str = "ambit-cni";

/// The plugin's settings. All paths are the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Always [`PLUGIN`].
    #[serde(rename = "type")]
    pub kind: String,
    /// The plugin's credential for the API server.
    pub kubeconfig: PathBuf,
    /// The socket of the node's ztunnel.
    pub socket: PathBuf,
    /// The cluster's name in workloads' uids.
    pub cluster: String,
    /// Pods of these namespaces are not enrolled, and cost no request.
    pub excluded_namespaces: Vec<String>,
    /// The plugin's log; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_file: Option<PathBuf>,
    /// The list was created by Ambit around a single configuration file; removing the entry restores that
    /// file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wraps_conf: bool,
}
