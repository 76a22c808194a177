//! `networking.istio.io`: WorkloadEntry and ServiceEntry, as written. An unknown field is a mistake.

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

/// A ServiceEntry.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ServiceEntry {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: ServiceEntrySpec,
    #[serde(rename = "status", default)]
    _status: IgnoredAny,
}

/// Services by host name.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ServiceEntrySpec {
    pub(crate) hosts: Vec<String>,
    pub(crate) addresses: Vec<String>,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) location: Option<String>,
    pub(crate) resolution: Option<String>,
    pub(crate) endpoints: Vec<WorkloadEntrySpec>,
    pub(crate) workload_selector: Option<EndpointSelector>,
    pub(crate) export_to: Vec<String>,
    pub(crate) subject_alt_names: Vec<String>,
}

/// A port of a ServiceEntry.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ServicePort {
    pub(crate) number: i64,
    #[serde(default)]
    pub(crate) protocol: String,
    pub(crate) name: String,
    pub(crate) target_port: Option<i64>,
}

/// Which workloads of the namespace are endpoints.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct EndpointSelector {
    pub(crate) labels: BTreeMap<String, String>,
}
