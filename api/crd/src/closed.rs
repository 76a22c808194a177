//! What stands in for a policy with mistakes, so that it closes its scope instead of opening it: [`instead`].
//! See docs/decisions/277.

use ambit_core::derive::{
    AuthorizationPolicy, Kind, Metadata, MtlsMode, Object, PeerAuthentication, PolicyAction, Selector,
    TargetRef,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::field::Report;
use crate::metadata;

/// The strictest policy that the object can have meant, if it is a policy and its name can be read.
pub(crate) fn instead(kind: Kind, value: &Value) -> Option<Object> {
    match kind {
        Kind::AuthorizationPolicy => Some(Object::AuthorizationPolicy(AuthorizationPolicy {
            metadata: meta(kind, value)?,
            selector: selector(value),
            target_refs: target_refs(value),
            action: match value.pointer("/spec/action").and_then(Value::as_str) {
                // Whatever else it says, it decides nothing.
                Some("AUDIT") => PolicyAction::Audit,
                _ => PolicyAction::Unreadable,
            },
            rules: Vec::new(),
        })),
        Kind::PeerAuthentication => Some(Object::PeerAuthentication(PeerAuthentication {
            metadata: meta(kind, value)?,
            selector: selector(value),
            mode: MtlsMode::Strict,
            port_modes: [].into(),
            same_node_tls: Some(true),
        })),
        _ => None,
    }
}

fn meta(kind: Kind, value: &Value) -> Option<Metadata> {
    let key = metadata::key(kind, value)?;
    let written = value.get("metadata").cloned().and_then(|meta| {
        let meta: ObjectMeta = serde_json::from_value(meta).ok()?;
        Some(metadata::in_namespace(&mut Report::default(), meta))
    });
    let bare = || Metadata { namespace: key.namespace, name: key.name, ..Metadata::default() };
    Some(written.unwrap_or_else(bare))
}

/// The labels of the selector; if it cannot be read, none: everything in the namespace.
fn selector(value: &Value) -> Selector {
    let labels = || {
        let selector = value.pointer("/spec/selector")?.as_object()?;
        let labels = selector.get("matchLabels").filter(|_| selector.len() == 1)?.as_object()?;
        let label = |(key, value): (&String, &Value)| {
            let value = value.as_str()?;
            let exact = !key.is_empty() && !key.contains('*') && !value.contains('*');
            exact.then(|| (key.clone(), value.to_owned()))
        };
        labels.iter().map(label).collect::<Option<Selector>>()
    };
    labels().unwrap_or_default()
}

/// One, if the policy is for waypoints and for nothing else.
fn target_refs(value: &Value) -> Vec<TargetRef> {
    let set = |field: &str| match value.pointer(field) {
        None | Some(Value::Null) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(_) => true,
    };
    let for_waypoints = (set("/spec/targetRef") || set("/spec/targetRefs")) && !set("/spec/selector");
    if for_waypoints { vec![TargetRef::default()] } else { Vec::new() }
}
