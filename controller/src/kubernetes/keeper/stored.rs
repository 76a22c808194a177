//! The objects in which the CA is kept: the state in a Secret, the user's own CA, and how they are read,
//! written and watched.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ambit_core::model::TrustDomain;
use ambit_kube::error::chain;
use ambit_kube::object;
use ambit_kube::retry::{RequestError, within};
use futures::{Stream, StreamExt};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};

use crate::ca;
use crate::ca::material::{Material, UserCa};
use crate::ca::rotation::{Pace, State};

/// The Secret's key with the state.
const STATE: &str = "ca.json";
/// The annotation of the Secret that requests a new root, by a new value.
const ROTATE_ROOT: &str = "ambit.dev/rotate-root";
/// The deadline of a request.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to {operation} {object}")]
    Api { operation: &'static str, object: String, source: RequestError },
    #[error("failed to parse {STATE} of Secret {0}")]
    Form(String, #[source] serde_json::Error),
    #[error(transparent)]
    Ca(#[from] ca::Error),
}

pub(super) fn read(secret: &Secret, name: &str) -> Result<Option<State>, Error> {
    let state = secret.data.as_ref().and_then(|data| data.get(STATE));
    let state = state.map(|bytes| serde_json::from_slice(&bytes.0)).transpose();
    state.map_err(|error| Error::Form(name.to_owned(), error))
}

/// Writes the state over the version of the Secret that was read, and no other.
pub(super) async fn write(
    secrets: &Api<Secret>,
    name: &str,
    old: &Secret,
    state: &State,
) -> Result<Secret, Error> {
    let text = serde_json::to_vec(state).map_err(|error| Error::Form(name.to_owned(), error))?;
    let mut metadata = old.metadata.clone();
    metadata.managed_fields = None;
    let metadata = if metadata.resource_version.is_some() {
        metadata
    } else {
        ObjectMeta { name: Some(name.to_owned()), annotations: metadata.annotations, ..ObjectMeta::default() }
    };
    let secret = Secret {
        metadata,
        data: Some(BTreeMap::from([(STATE.to_owned(), ByteString(text))])),
        type_: old.type_.clone(),
        ..Secret::default()
    };
    let written = within(DEADLINE, object::write(secrets, &secret)).await;
    written.map_err(api_error("write", format!("Secret {name}")))
}

pub(super) fn requested_rotation(secret: &Secret) -> Option<&str> {
    secret.metadata.annotations.as_ref()?.get(ROTATE_ROOT).map(String::as_str)
}

/// A user's own CA, if it can sign now.
pub(super) fn usable(secret: &Secret, trust_domain: &TrustDomain, pace: Pace) -> Result<Material, ca::Error> {
    let own = user_ca(secret)?;
    own.authority(trust_domain, pace.longest, SystemTime::now()).map(|_| own)
}

/// A user's own CA, under Istio's names.
pub(super) fn user_ca(secret: &Secret) -> Result<Material, ca::Error> {
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).unwrap_or_default()
    };
    Material::from_user(UserCa {
        ca_cert: text("ca-cert.pem"),
        ca_key: text("ca-key.pem"),
        cert_chain: text("cert-chain.pem"),
        root_cert: text("root-cert.pem"),
    })
}

pub(super) async fn get<K>(api: &Api<K>, name: &str) -> Result<Option<K>, Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    within(DEADLINE, api.get_opt(name)).await.map_err(api_error("read", name.to_owned()))
}

/// Names the operation that the API server did not do.
pub(super) fn api_error(operation: &'static str, object: String) -> impl FnOnce(RequestError) -> Error {
    move |source| Error::Api { operation, object, source }
}

/// Every version of one object; `None`: deleted. Errors are logged, and the watch starts again.
pub(super) fn watched<K>(api: &Api<K>, name: &str) -> impl Stream<Item = Option<K>> + Unpin + use<K>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let name = name.to_owned();
    let objects = watcher::watch_object(api.clone(), &name).default_backoff();
    let good = objects.filter_map(move |object| {
        let object = object
            .inspect_err(|error| tracing::warn!(name, error = chain(error), "failed to watch an object"))
            .ok();
        std::future::ready(object)
    });
    Box::pin(good)
}
