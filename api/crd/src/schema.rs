//! The CustomResourceDefinitions of the kinds that are not Kubernetes' own, from the types that read them:
//! [`files`].
//!
//! What the types' readers call a mistake, and what the API server can tell by itself, is refused when the
//! object is applied: by the schema where that can say it (that costs nothing), else by a rule in CEL. What
//! needs other objects, the namespace or the annotations is not: the object's status says it. Nothing that is
//! read without a mistake is refused.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::networking::{ServiceEntrySpec, WorkloadEntrySpec};
use crate::security::{AuthorizationPolicySpec, PeerAuthenticationSpec};

/// What an object must fulfil, and what is said where it does not.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Validation {
    rule: &'static str,
    message: &'static str,
}

pub(crate) const AUTHORIZATION_POLICY: [Validation; 3] = [
    Validation {
        rule: "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) && \
               size(self.targetRefs) > 0 ? 1 : 0) <= 1",
        message: "only one of selector, targetRef and targetRefs may be set",
    },
    Validation {
        rule: "!has(self.provider) || (has(self.action) && self.action == 'CUSTOM')",
        message: "only the action CUSTOM has a provider",
    },
    Validation {
        rule: "!has(self.action) || self.action != 'DENY' || (has(self.rules) && size(self.rules) > 0)",
        message: "DENY without rules never denies; an empty rule, {}, denies everything",
    },
];

pub(crate) const SOURCE: [Validation; 1] = [Validation {
    rule: "!((has(self.serviceAccounts) && size(self.serviceAccounts) > 0) || (has(self.notServiceAccounts) \
           && size(self.notServiceAccounts) > 0)) || !((has(self.principals) && size(self.principals) > 0) \
           || (has(self.notPrincipals) && size(self.notPrincipals) > 0) || (has(self.namespaces) && \
           size(self.namespaces) > 0) || (has(self.notNamespaces) && size(self.notNamespaces) > 0))",
    message: "service accounts cannot be combined with principals or namespaces",
}];

pub(crate) const PEER_AUTHENTICATION: [Validation; 1] = [Validation {
    rule: "!has(self.portLevelMtls) || (has(self.selector) && has(self.selector.matchLabels) && \
           size(self.selector.matchLabels) > 0)",
    message: "portLevelMtls needs a selector: a port means something on a workload only",
}];

pub(crate) const PORT_KEYS: [Validation; 1] = [Validation {
    rule: "self.all(port, 0 < int(port) && int(port) <= 65535)",
    message: "a port is a number from 1 to 65535",
}];

pub(crate) const WORKLOAD_ENTRY: [Validation; 1] = [Validation {
    rule: "(has(self.address) && size(self.address) > 0) || (has(self.network) && size(self.network) > 0)",
    message: "address is missing: only an entry of another network may do without",
}];

pub(crate) const SERVICE_ENTRY: [Validation; 3] = [
    Validation {
        rule: "!(has(self.endpoints) && size(self.endpoints) > 0 && has(self.workloadSelector))",
        message: "only one of endpoints and workloadSelector may be set",
    },
    Validation {
        rule: "(has(self.resolution) && self.resolution != 'NONE') || !has(self.endpoints) || \
               size(self.endpoints) == 0",
        message: "resolution NONE takes no endpoints: clients choose the address themselves",
    },
    Validation {
        rule: "!has(self.resolution) || !self.resolution.startsWith('DNS') || (has(self.endpoints) && \
               size(self.endpoints) > 0) || has(self.workloadSelector) || self.hosts.all(host, \
               !host.startsWith('*'))",
        message: "a wildcard cannot be resolved: name endpoints, or a whole host name",
    },
];

/// That no name is there twice is the list type's to see: comparing texts in CEL goes beyond the API server's
/// budget.
pub(crate) const ENTRY_PORTS: [Validation; 1] = [Validation {
    rule: "self.all(one, self.exists_one(other, one.number == other.number))",
    message: "a port number is there twice",
}];

/// A port as text.
const PORT: &str =
    "^0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";

/// A name as Kubernetes has them, or none.
pub(crate) const NAME_OR_NOTHING: &str =
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)?$";

/// A host name, of which the first label may be a wildcard.
const HOST: &str = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// A name, or what may be an IP address.
pub(crate) const ADDRESS: &str =
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*|[0-9a-fA-F:.]*)$";

pub(crate) const PROTOCOL: &str = "^(?i)(udp|tcp|tls|http|https|http2|grpc|grpc-web|mongo|mysql|redis)?$";

/// The attributes of `when`.
pub(crate) const ATTRIBUTE: &str = r"^(source\.(ip|namespace|principal|serviceAccount)|remote\.ip|request\.auth\.(principal|audiences|presenter)|destination\.(ip|port)|connection\.sni|(request\.headers|request\.auth\.claims|experimental\.envoy\.filters\.)[^\[]*\[(?s:.+)\])$";

/// Texts that are not empty.
pub(crate) fn texts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": {"type": "string", "minLength": 1}})
}

pub(crate) fn ports(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": {"type": "string", "pattern": PORT}})
}

/// Addresses and blocks of addresses.
pub(crate) fn blocks(_: &mut SchemaGenerator) -> Schema {
    let formats = ["ipv4", "ipv6", "cidr"].map(|format| json!({"format": format}));
    json_schema!({"type": "array", "items": {"type": "string", "anyOf": formats}})
}

pub(crate) fn service_accounts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": {"type": "string", "pattern": "^[^/*]+(/[^/*]+)?$"}})
}

pub(crate) fn hosts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 256,
        "x-kubernetes-list-type": "set",
        "items": {"type": "string", "pattern": HOST, "maxLength": 255},
    })
}

/// Labels without wildcards.
pub(crate) fn label_values(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[^*]*$"}})
}

pub(crate) fn some_label_values(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = label_values(generator);
    schema.insert("minProperties".to_owned(), 1.into());
    schema
}

pub(crate) fn named_ports(_: &mut SchemaGenerator) -> Schema {
    let port = json!({"type": "integer", "format": "int64", "minimum": 1, "maximum": 65535});
    json_schema!({"type": "object", "additionalProperties": port})
}

pub(crate) fn values_or_not_values() -> Value {
    json!([{"required": ["values"]}, {"required": ["notValues"]}])
}

/// A kind that the API server is to know.
struct Definition {
    group: &'static str,
    /// The stored one first.
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    spec: Schema,
    /// Whether an object may do without one.
    optional_spec: bool,
    /// Name, type and path of what `kubectl get` shows.
    columns: &'static [(&'static str, &'static str, &'static str)],
}

/// The files of all definitions, by name.
pub fn files() -> Vec<(String, String)> {
    let text = |object: &Value| {
        let yaml = serde_yaml_ng::to_string(object).expect("JSON is YAML");
        format!("# Generated by `cargo xtask crds`. Do not edit.\n{yaml}")
    };
    definitions().iter().map(|(name, object)| (name.clone(), text(object))).collect()
}

/// Each definition and the name of its file.
fn definitions() -> Vec<(String, Value)> {
    let security: &[&str] = &["v1", "v1beta1"];
    let networking: &[&str] = &["v1", "v1beta1", "v1alpha3"];
    let definitions = [
        Definition {
            group: "security.istio.io",
            versions: security,
            kind: "AuthorizationPolicy",
            plural: "authorizationpolicies",
            short: "ap",
            spec: schema_of::<AuthorizationPolicySpec>(),
            optional_spec: true,
            columns: &[("Action", "string", ".spec.action")],
        },
        Definition {
            group: "security.istio.io",
            versions: security,
            kind: "PeerAuthentication",
            plural: "peerauthentications",
            short: "pa",
            spec: schema_of::<PeerAuthenticationSpec>(),
            optional_spec: true,
            columns: &[("Mode", "string", ".spec.mtls.mode")],
        },
        Definition {
            group: "networking.istio.io",
            versions: networking,
            kind: "ServiceEntry",
            plural: "serviceentries",
            short: "se",
            spec: schema_of::<ServiceEntrySpec>(),
            optional_spec: false,
            columns: &[
                ("Hosts", "string", ".spec.hosts"),
                ("Location", "string", ".spec.location"),
                ("Resolution", "string", ".spec.resolution"),
            ],
        },
        Definition {
            group: "networking.istio.io",
            versions: networking,
            kind: "WorkloadEntry",
            plural: "workloadentries",
            short: "we",
            spec: schema_of::<WorkloadEntrySpec>(),
            optional_spec: false,
            columns: &[("Address", "string", ".spec.address")],
        },
    ];
    definitions.iter().map(|definition| (definition.file(), definition.object())).collect()
}

impl Definition {
    fn file(&self) -> String {
        format!("{}_{}.yaml", self.group, self.plural)
    }

    fn object(&self) -> Value {
        let versions = self.versions.iter().map(|version| self.version(version));
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{}.{}", self.plural, self.group),
                "labels": {"app.kubernetes.io/part-of": "ambit"},
                "annotations": {"helm.sh/resource-policy": "keep"},
            },
            "spec": {
                "group": self.group,
                "names": {
                    "kind": self.kind,
                    "listKind": format!("{}List", self.kind),
                    "plural": self.plural,
                    "singular": self.kind.to_lowercase(),
                    "shortNames": [self.short],
                    "categories": ["istio-io", self.group.replace('.', "-")],
                },
                "scope": "Namespaced",
                "versions": versions.collect::<Vec<_>>(),
            },
        })
    }

    fn version(&self, version: &str) -> Value {
        let own = self.columns.iter();
        let own = own.map(|(name, kind, path)| json!({"name": name, "type": kind, "jsonPath": path}));
        let common = [
            json!({
                "name": "Accepted",
                "type": "string",
                "description": "Whether the node daemons enforce the object.",
                "jsonPath": r#".status.conditions[?(@.type=="ambit.dev/ZtunnelAccepted")].status"#,
            }),
            json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}),
        ];
        let mut schema = json!({
            "type": "object",
            "properties": {"spec": self.spec, "status": status()},
        });
        if !self.optional_spec {
            schema["required"] = json!(["spec"]);
        }
        json!({
            "name": version,
            "served": true,
            "storage": version == self.versions[0],
            "subresources": {"status": {}},
            "additionalPrinterColumns": own.chain(common).collect::<Vec<_>>(),
            "schema": {"openAPIV3Schema": schema},
        })
    }
}

/// Conditions as Kubernetes has them. Others may write more into a status.
fn status() -> Value {
    let text = || json!({"type": "string"});
    json!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status"],
                    "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {
                        "type": text(),
                        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                        "reason": text(),
                        "message": text(),
                        "lastTransitionTime": {"type": "string", "format": "date-time"},
                        "observedGeneration": {"type": "integer", "format": "int64"},
                    },
                },
            },
        },
    })
}

/// The type's schema in the structural form that the API server asks for.
fn schema_of<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let mut value = settings.into_generator().into_root_schema_for::<T>().to_value();
    structural(&mut value);
    Schema::try_from(value).expect("an object stays one")
}

/// Takes out what a structural schema must not have. Defaults are among that: what is not written stays
/// unwritten. Nulls too: the API server drops them.
fn structural(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    for name in ["$schema", "title", "default", "nullable"] {
        fields.remove(name);
    }
    if fields.get("additionalProperties") == Some(&Value::Bool(false)) {
        fields.remove("additionalProperties");
    }
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = &types[..] {
            let only = only.clone();
            fields.insert("type".to_owned(), only);
        }
    }
    without_null(fields);
    for (name, value) in fields.iter_mut() {
        match (name.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(structural),
            ("items" | "additionalProperties", value) => structural(value),
            _ => {}
        }
    }
}

/// `X or null` → `X`.
fn without_null(fields: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = fields.get("anyOf") else { return };
    let is_null = |choice: &Value| {
        choice.get("type").is_some_and(|kind| kind == "null")
            || choice == &json!({"nullable": true})
            || choice.get("enum") == Some(&json!([null]))
    };
    let [Value::Object(meant), null] = &choices[..] else { return };
    if is_null(null) {
        let meant = meant.clone();
        fields.remove("anyOf");
        for (name, value) in meant {
            fields.entry(name).or_insert(value);
        }
    }
}
