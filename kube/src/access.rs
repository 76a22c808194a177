//! The client's configuration: [`config`].

use std::path::Path;

use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::error::chain;

/// Why there is no configuration. Its text holds the causes: they are errors of several types.
#[derive(Debug, thiserror::Error)]
#[error("failed to find the API server: {0}")]
pub struct AccessError(String);

impl AccessError {
    /// From any error of the client's.
    pub fn new(cause: &(dyn std::error::Error + 'static)) -> Self {
        Self(chain(cause))
    }
}

/// How to reach the API server: as `kubeconfig` says, else with the service account of this pod.
pub async fn config(kubeconfig: Option<&Path>) -> Result<Config, AccessError> {
    match kubeconfig {
        Some(path) => from_file(path, &KubeConfigOptions::default()).await,
        None => Config::incluster().map_err(|error| AccessError::new(&error)),
    }
}

/// How to reach the API server as a kubeconfig says; `options` choose among its contexts.
pub async fn from_file(path: &Path, options: &KubeConfigOptions) -> Result<Config, AccessError> {
    let file = Kubeconfig::read_from(path).map_err(|error| AccessError::new(&error))?;
    Config::from_custom_kubeconfig(file, options).await.map_err(|error| AccessError::new(&error))
}
