//! `metadata`: names (checked, because they become part of identities and host names), labels, annotations
//! and creation time.

use ambit_core::derive::{Kind, Metadata, ObjectKey, Selector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::field::Report;
use crate::security::WorkloadSelector;

/// The namespace of objects that name none, as in kubectl.
const DEFAULT_NAMESPACE: &str = "default";

/// Whether a kind is namespaced.
fn namespaced(kind: Kind) -> bool {
    !matches!(kind, Kind::Namespace | Kind::Node)
}

/// The metadata of an object of a namespaced kind.
pub(crate) fn in_namespace(report: &mut Report, meta: ObjectMeta) -> Metadata {
    let namespace = match meta.namespace.as_deref() {
        None | Some("") => DEFAULT_NAMESPACE.to_owned(),
        Some(namespace) => {
            report.label("metadata.namespace", namespace);
            namespace.to_owned()
        }
    };
    common(report, namespace, meta)
}

/// The metadata of an object of a cluster-scoped kind.
pub(crate) fn in_cluster(report: &mut Report, meta: ObjectMeta) -> Metadata {
    if meta.namespace.as_deref().is_some_and(|namespace| !namespace.is_empty()) {
        report.add("metadata.namespace", "this kind has no namespace");
    }
    common(report, String::new(), meta)
}

fn common(report: &mut Report, namespace: String, meta: ObjectMeta) -> Metadata {
    let name = meta.name.unwrap_or_default();
    if name.is_empty() {
        report.add("metadata.name", "missing");
    } else {
        report.name("metadata.name", &name);
    }
    Metadata {
        namespace,
        name,
        labels: meta.labels.unwrap_or_default(),
        annotations: meta.annotations.unwrap_or_default(),
        created: meta.creation_timestamp.map(|time| time.0.as_second()),
    }
}

/// A policy's selector. As in Istio, it has no wildcards.
pub(crate) fn selector(report: &mut Report, selector: Option<WorkloadSelector>) -> Selector {
    let labels = selector.unwrap_or_default().match_labels;
    for (key, value) in &labels {
        let field = format_args!("spec.selector.matchLabels[{key:?}]");
        if key.is_empty() {
            report.add(field, "a label has a key");
        } else if key.contains('*') || value.contains('*') {
            report.add(field, "wildcards are not understood in a selector");
        }
    }
    labels
}

/// The key of an object that may have mistakes.
pub(crate) fn key(kind: Kind, value: &Value) -> Option<ObjectKey> {
    let text = |field| value.get("metadata").and_then(|meta| meta.get(field)).and_then(Value::as_str);
    let name = text("name").filter(|name| !name.is_empty())?.to_owned();
    let namespace = if namespaced(kind) {
        text("namespace").filter(|namespace| !namespace.is_empty()).unwrap_or(DEFAULT_NAMESPACE).to_owned()
    } else {
        String::new()
    };
    Some(ObjectKey { kind, namespace, name })
}
