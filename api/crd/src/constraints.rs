//! The constraints of the CustomResourceDefinitions' fields, in OpenAPI and in CEL.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::{Value, json};

/// A validation rule in CEL, and the message of objects that break it.
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

pub(crate) const SERVICE_ENTRY: [Validation; 4] = [
    Validation {
        rule: "!has(self.exportTo) || size(self.exportTo) <= 1 || !('*' in self.exportTo || '~' in \
               self.exportTo)",
        message: "in exportTo, * and ~ stand alone",
    },
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

/// The list type checks that names are unique: comparing text in CEL exceeds the API server's cost limit.
pub(crate) const ENTRY_PORTS: [Validation; 1] = [Validation {
    rule: "self.all(one, self.exists_one(other, one.number == other.number))",
    message: "a port number is there twice",
}];

/// A port as text.
const PORT: &str =
    "^0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";

/// A DNS subdomain, or empty.
pub(crate) const NAME_OR_NOTHING: &str =
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)?$";

/// A host name; the first label may be a wildcard.
const HOST: &str = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// A host name, or something like an IP address.
pub(crate) const ADDRESS: &str =
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*|[0-9a-fA-F:.]*)$";

pub(crate) const PROTOCOL: &str = "^(?i)(udp|tcp|tls|http|https|http2|grpc|grpc-web|mongo|mysql|redis)?$";

/// The attributes of `when`.
pub(crate) const ATTRIBUTE: &str = concat!(
    r"^(source\.(ip|namespace|principal|serviceAccount)|remote\.ip",
    r"|request\.auth\.(principal|audiences|presenter)|destination\.(ip|port)|connection\.sni",
    r"|(request\.headers|request\.auth\.claims|experimental\.envoy\.filters\.)[^\[]*\[(?s:.+)\])$",
);

/// Strings that are not empty.
pub(crate) fn texts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": {"type": "string", "minLength": 1}})
}

/// Texts with a `*` at one end at most: elsewhere it never matches.
pub(crate) fn wildcards(_: &mut SchemaGenerator) -> Schema {
    let pattern = r"^(\*|\*[^*]+|[^*]+\*?)$";
    json_schema!({"type": "array", "items": {"type": "string", "pattern": pattern}})
}

/// Paths: as [`wildcards`], or templates, which have braces.
pub(crate) fn paths(_: &mut SchemaGenerator) -> Schema {
    let pattern = r"^(\*|\*[^*]+|[^*]+\*?|.*\{.*)$";
    json_schema!({"type": "array", "items": {"type": "string", "pattern": pattern}})
}

pub(crate) fn namespaces(_: &mut SchemaGenerator) -> Schema {
    let pattern = r"^(\*|\*[-a-z0-9]+|[-a-z0-9]+\*?)$";
    json_schema!({"type": "array", "items": {"type": "string", "pattern": pattern}})
}

/// `<trust domain>/ns/<namespace>/sa/<account>`, or the beginning or end of that; without `spiffe://`.
pub(crate) fn principals(_: &mut SchemaGenerator) -> Schema {
    let name = "[-._a-zA-Z0-9]+";
    let pattern = format!(r"^(\*|\*[^*]+|[^*]+\*|[-._a-z0-9]+/ns/{name}/sa/{name})$");
    let item = json!({"type": "string", "pattern": pattern, "not": {"pattern": "^spiffe:"}});
    json_schema!({"type": "array", "items": item})
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

/// Namespaces, `.`, `*` or `~`.
pub(crate) fn export_to(_: &mut SchemaGenerator) -> Schema {
    let pattern = "^([.*~]|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$";
    json_schema!({
        "type": "array",
        "maxItems": 512,
        "x-kubernetes-list-type": "set",
        "items": {"type": "string", "pattern": pattern, "maxLength": 63},
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
