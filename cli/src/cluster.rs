//! The API client: which cluster, and how Ambit's own objects are called there.

use std::path::PathBuf;
use std::time::Duration;

use ambit_kube::access::{self, AccessError};
use clap::Args;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::config::KubeConfigOptions;
use kube::discovery::Scope;
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::error::{Error, api};
use crate::manifests::{MANAGER, Manifest};

/// The label of everything that belongs to Ambit.
pub(crate) const ALL_PODS: &str = "app.kubernetes.io/part-of=ambit";
pub(crate) const CONTROLLER_PODS: &str =
    "app.kubernetes.io/part-of=ambit,app.kubernetes.io/name=ambit-controller";
pub(crate) const ZTUNNEL_PODS: &str = "app.kubernetes.io/part-of=ambit,app.kubernetes.io/name=ztunnel";
/// The label with the component's name.
pub(crate) const NAME: &str = "app.kubernetes.io/name";
pub(crate) const VERSION: &str = "app.kubernetes.io/version";
pub(crate) const CONTROLLER: &str = "ambit-controller";
pub(crate) const ZTUNNEL: &str = "ztunnel";

/// The namespace that Ambit is installed in by default.
pub(crate) const SYSTEM: &str = "ambit-system";

/// The deadline of a connection to the API server: a person waits.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Which cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct Access {
    /// The kubeconfig file; by default $KUBECONFIG or ~/.kube/config, or the pod's service account in a
    /// cluster.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig to use.
    #[arg(long, global = true)]
    context: Option<String>,
    /// The namespace that Ambit is installed in.
    #[arg(long, global = true, value_name = "NAMESPACE", default_value = SYSTEM)]
    pub(crate) ambit_namespace: String,
}

impl Access {
    pub(crate) async fn connect(&self) -> Result<Client, Error> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &self.kubeconfig {
            Some(path) => access::from_file(path, &options).await?,
            None if self.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|error| AccessError::new(&error))?
            }
            None => Config::infer().await.map_err(|error| AccessError::new(&error))?,
        };
        config.connect_timeout = Some(CONNECT_DEADLINE);
        Ok(Client::try_from(config).map_err(|error| AccessError::new(&error))?)
    }
}

/// The part of the API that a manifest belongs to.
pub(crate) fn api_of(client: &Client, manifest: &Manifest) -> Api<DynamicObject> {
    match (&manifest.scope, manifest.namespace()) {
        (Scope::Namespaced, Some(namespace)) => {
            Api::namespaced_with(client.clone(), namespace, &manifest.resource)
        }
        _ => Api::all_with(client.clone(), &manifest.resource),
    }
}

/// Sets labels of a namespace, and removes those that are null.
pub(crate) async fn label_namespace(client: &Client, name: &str, labels: &Value) -> Result<(), Error> {
    let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let labelled = Api::<Namespace>::all(client.clone()).patch(name, &parameters, &patch).await;
    labelled.map(drop).map_err(api(format!("label namespace {name}")))
}
