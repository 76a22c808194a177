//! The types of `networking.istio.io`: WorkloadEntry and ServiceEntry. An unknown field is a mistake.

use std::collections::BTreeMap;

use serde::Deserialize;

#[cfg(feature = "schema")]
use crate::constraints;
use crate::envelope::Envelope;

/// A WorkloadEntry.
pub(crate) type WorkloadEntry = Envelope<WorkloadEntrySpec>;

/// A process or machine that is not a pod.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(extend("x-kubernetes-validations" = constraints::WORKLOAD_ENTRY)),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct WorkloadEntrySpec {
    #[cfg_attr(feature = "schema", schemars(regex(pattern = constraints::ADDRESS)))]
    pub(crate) address: String,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::named_ports"))]
    pub(crate) ports: BTreeMap<String, i64>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) network: String,
    /// `region/zone/subzone`.
    pub(crate) locality: String,
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 4_294_967_295_i64)))]
    pub(crate) weight: Option<i64>,
    #[cfg_attr(feature = "schema", schemars(regex(pattern = constraints::NAME_OR_NOTHING)))]
    pub(crate) service_account: String,
}

/// A ServiceEntry.
pub(crate) type ServiceEntry = Envelope<ServiceEntrySpec>;

/// Services by host name.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(
        extend("required" = ["hosts", "ports"], "x-kubernetes-validations" = constraints::SERVICE_ENTRY),
    ),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ServiceEntrySpec {
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::hosts"))]
    pub(crate) hosts: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::blocks"))]
    pub(crate) addresses: Vec<String>,
    #[cfg_attr(
        feature = "schema",
        schemars(
            length(min = 1, max = 256),
            extend(
                "x-kubernetes-list-type" = "map",
                "x-kubernetes-list-map-keys" = ["name"],
                "x-kubernetes-validations" = constraints::ENTRY_PORTS,
            ),
        ),
    )]
    pub(crate) ports: Vec<ServicePort>,
    #[cfg_attr(feature = "schema", schemars(extend("enum" = ["MESH_EXTERNAL", "MESH_INTERNAL"])))]
    pub(crate) location: Option<String>,
    #[cfg_attr(feature = "schema", schemars(extend("enum" = ["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN"])))]
    pub(crate) resolution: Option<String>,
    #[cfg_attr(feature = "schema", schemars(length(max = 4096)))]
    pub(crate) endpoints: Vec<WorkloadEntrySpec>,
    pub(crate) workload_selector: Option<EndpointSelector>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::export_to"))]
    pub(crate) export_to: Vec<String>,
    pub(crate) subject_alt_names: Vec<String>,
}

/// A port of a ServiceEntry.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ServicePort {
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 65535)))]
    pub(crate) number: i64,
    #[cfg_attr(feature = "schema", schemars(regex(pattern = constraints::PROTOCOL)))]
    #[serde(default)]
    pub(crate) protocol: String,
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub(crate) name: String,
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 65535)))]
    pub(crate) target_port: Option<i64>,
}

/// Selects workloads of the namespace as endpoints.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("required" = ["labels"])))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct EndpointSelector {
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::some_label_values"))]
    pub(crate) labels: BTreeMap<String, String>,
}
