//! Whether a pod of the DaemonSet belongs on a node, as the DaemonSet controller decides it by the node's
//! labels and name. Taints do not count (decision 272). Pure; the entry point is [`belongs`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

/// Whether a pod with this specification belongs on the node.
pub(crate) fn belongs(node: &Node, pod: &PodSpec) -> bool {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let by_label = pod.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = pod.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    by_label
        && required.is_none_or(|required| {
            required.node_selector_terms.iter().any(|term| matches(term, node, labels))
        })
}

/// A term without requirements matches nothing.
fn matches(term: &NodeSelectorTerm, node: &Node, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = |key: &str| node.metadata.name.as_deref().filter(|_| key == "metadata.name");
    let label = |key: &str| labels.get(key).map(String::as_str);
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|requirement| holds(requirement, label(&requirement.key)))
        && fields.iter().all(|requirement| holds(requirement, name(&requirement.key)))
}

fn holds(requirement: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = found.is_some_and(|found| values.iter().any(|value| value == found));
    let ordered = |than: fn(&i64, &i64) -> bool| {
        let (Some(found), [value]) = (found, values) else { return false };
        matches!((found.parse(), value.parse()), (Ok(found), Ok(value)) if than(&found, &value))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => ordered(i64::gt),
        "Lt" => ordered(i64::lt),
        // Of a later Kubernetes: as if it belonged here, so that nothing is removed.
        _ => true,
    }
}

#[cfg(test)]
mod tests;
