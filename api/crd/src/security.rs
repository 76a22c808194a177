//! The types of `security.istio.io`: AuthorizationPolicy and PeerAuthentication. An unknown field is a
//! mistake: a misspelt condition would widen what a policy permits.

use std::collections::BTreeMap;

use serde::Deserialize;

#[cfg(feature = "schema")]
use crate::constraints;
use crate::envelope::Envelope;

/// An AuthorizationPolicy.
pub(crate) type AuthorizationPolicy = Envelope<Option<AuthorizationPolicySpec>>;

/// The spec of an AuthorizationPolicy. An absent list differs from an empty one.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(extend("x-kubernetes-validations" = constraints::AUTHORIZATION_POLICY)),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AuthorizationPolicySpec {
    pub(crate) selector: Option<WorkloadSelector>,
    pub(crate) target_ref: Option<TargetReference>,
    #[serde(default)]
    pub(crate) target_refs: Vec<TargetReference>,
    #[cfg_attr(feature = "schema", schemars(length(max = 512)))]
    pub(crate) rules: Option<Vec<Rule>>,
    #[cfg_attr(feature = "schema", schemars(extend("enum" = ["ALLOW", "DENY", "AUDIT", "CUSTOM"])))]
    pub(crate) action: Option<String>,
    pub(crate) provider: Option<Provider>,
}

/// Selects workloads of the namespace.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct WorkloadSelector {
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::label_values"))]
    #[serde(default)]
    pub(crate) match_labels: BTreeMap<String, String>,
}

/// What a policy is attached to.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TargetReference {
    #[serde(default)]
    pub(crate) group: String,
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub(crate) kind: String,
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
}

/// The provider of the action CUSTOM.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Provider {
    #[serde(rename = "name", default)]
    _name: String,
}

/// A rule.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Rule {
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 512)))]
    pub(crate) from: Option<Vec<From>>,
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 512)))]
    pub(crate) to: Option<Vec<To>>,
    #[serde(default)]
    pub(crate) when: Vec<When>,
}

/// One source.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct From {
    pub(crate) source: Source,
}

/// Conditions on the peer; AND-ed.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(extend("minProperties" = 1, "x-kubernetes-validations" = constraints::SOURCE)),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Source {
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::principals"))]
    pub(crate) principals: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::principals"))]
    pub(crate) not_principals: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::wildcards"))]
    pub(crate) request_principals: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::wildcards"))]
    pub(crate) not_request_principals: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::namespaces"))]
    pub(crate) namespaces: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::namespaces"))]
    pub(crate) not_namespaces: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::service_accounts"))]
    pub(crate) service_accounts: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::service_accounts"))]
    pub(crate) not_service_accounts: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::blocks"))]
    pub(crate) ip_blocks: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::blocks"))]
    pub(crate) not_ip_blocks: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::blocks"))]
    pub(crate) remote_ip_blocks: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::blocks"))]
    pub(crate) not_remote_ip_blocks: Vec<String>,
}

/// One operation.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct To {
    pub(crate) operation: Operation,
}

/// Conditions on the request; AND-ed.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("minProperties" = 1)))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Operation {
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::wildcards"))]
    pub(crate) hosts: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::wildcards"))]
    pub(crate) not_hosts: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::ports"))]
    pub(crate) ports: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::ports"))]
    pub(crate) not_ports: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::wildcards"))]
    pub(crate) methods: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::wildcards"))]
    pub(crate) not_methods: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::paths"))]
    pub(crate) paths: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::paths"))]
    pub(crate) not_paths: Vec<String>,
}

/// A condition on an attribute.
#[derive(Debug, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(extend("anyOf" = constraints::values_or_not_values())),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct When {
    #[cfg_attr(feature = "schema", schemars(regex(pattern = constraints::ATTRIBUTE)))]
    pub(crate) key: String,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::texts"))]
    #[serde(default)]
    pub(crate) values: Vec<String>,
    #[cfg_attr(feature = "schema", schemars(schema_with = "constraints::texts"))]
    #[serde(default)]
    pub(crate) not_values: Vec<String>,
}

/// A PeerAuthentication.
pub(crate) type PeerAuthentication = Envelope<Option<PeerAuthenticationSpec>>;

/// The spec of a PeerAuthentication.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(extend("x-kubernetes-validations" = constraints::PEER_AUTHENTICATION)),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PeerAuthenticationSpec {
    pub(crate) selector: Option<WorkloadSelector>,
    pub(crate) mtls: Option<MutualTls>,
    #[cfg_attr(
        feature = "schema",
        schemars(extend("minProperties" = 1, "x-kubernetes-validations" = constraints::PORT_KEYS)),
    )]
    pub(crate) port_level_mtls: Option<BTreeMap<String, MutualTls>>,
}

/// The mode of all ports or of one.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MutualTls {
    #[cfg_attr(feature = "schema", schemars(extend("enum" = ["UNSET", "DISABLE", "PERMISSIVE", "STRICT"])))]
    pub(crate) mode: Option<String>,
}
