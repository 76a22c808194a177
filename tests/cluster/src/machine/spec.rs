//! What a machine is made from, as it is written for its helper.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A machine's description.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Its host name.
    pub(crate) name: String,
    /// Its group in every hierarchy.
    pub(crate) cgroup: String,
    /// What is its own of the file system, kept through reboots.
    pub(crate) folder: PathBuf,
    /// What of the host's file system it sees at the same place, however much of that is hidden.
    pub(crate) shared: Vec<PathBuf>,
    /// `ambit-cluster-machine`.
    pub(crate) helper: PathBuf,
    /// Whether it lives on when the process that made it ends.
    pub(crate) detached: bool,
}

/// Reads a machine's description.
pub(super) fn read(path: &Path) -> Result<Spec> {
    let text = std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}
