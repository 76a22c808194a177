//! `networking.istio.io`: WorkloadEntry, as written. An unknown field is a mistake.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// A WorkloadEntry.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct WorkloadEntry {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: WorkloadEntrySpec,
    #[serde(rename = "status", default)]
    _status: IgnoredAny,
}

/// A process or machine outside Kubernetes' own bookkeeping.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct WorkloadEntrySpec {
    pub(crate) address: String,
    pub(crate) ports: BTreeMap<String, i64>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) network: String,
    /// `region/zone/subzone`.
    pub(crate) locality: String,
    pub(crate) weight: Option<i64>,
    pub(crate) service_account: String,
}
