//! What all of Istio's objects have around their `spec`: [`Envelope`].

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// An object. An unknown field is a mistake, and so is a missing `spec`, unless `S` is an `Option`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Envelope<S> {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: S,
    #[serde(rename = "status", default)]
    _status: IgnoredAny,
}
