//! The way to the cluster.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kube::api::{Api, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::Scope;
use kube::{Client, Config};

use crate::error::Error;
use crate::manifests::Manifest;

/// The label of everything that belongs to Ambit.
pub(crate) const ALL_PODS: &str = "app.kubernetes.io/part-of=ambit";
pub(crate) const CONTROLLER_PODS: &str =
    "app.kubernetes.io/part-of=ambit,app.kubernetes.io/name=ambit-controller";
pub(crate) const ZTUNNEL_PODS: &str = "app.kubernetes.io/part-of=ambit,app.kubernetes.io/name=ztunnel";
pub(crate) const VERSION: &str = "app.kubernetes.io/version";
pub(crate) const CONTROLLER: &str = "ambit-controller";
pub(crate) const ZTUNNEL: &str = "ztunnel";

/// Where Ambit is installed where nothing else is said.
pub(crate) const SYSTEM: &str = "ambit-system";

/// For a connection to the API server: a person waits.
const CONNECT: Duration = Duration::from_secs(5);

/// Which cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct Access {
    /// Where the kubeconfig is; $KUBECONFIG or ~/.kube/config by default, the pod's own account within a
    /// cluster.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig.
    #[arg(long, global = true)]
    context: Option<String>,
    /// The namespace that Ambit is installed in.
    #[arg(long, global = true, value_name = "NAMESPACE", default_value = SYSTEM)]
    pub(crate) ambit_namespace: String,
}

impl Access {
    pub(crate) async fn connect(&self) -> Result<Client, Error> {
        let wrong = |error: &(dyn std::error::Error + 'static)| Error::Access(crate::chain(error));
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &self.kubeconfig {
            Some(file) => {
                let file = Kubeconfig::read_from(file).map_err(|error| wrong(&error))?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(|error| wrong(&error))?
            }
            None if self.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|error| wrong(&error))?
            }
            None => Config::infer().await.map_err(|error| wrong(&error))?,
        };
        config.connect_timeout = Some(CONNECT);
        Client::try_from(config).map_err(|error| wrong(&error))
    }
}

/// The part of the API that a manifest belongs to.
pub(crate) fn part(client: &Client, manifest: &Manifest) -> Api<DynamicObject> {
    match (&manifest.scope, manifest.namespace()) {
        (Scope::Namespaced, Some(namespace)) => {
            Api::namespaced_with(client.clone(), namespace, &manifest.resource)
        }
        _ => Api::all_with(client.clone(), &manifest.resource),
    }
}
