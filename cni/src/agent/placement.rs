//! Whether a pod of the DaemonSet belongs on a node, as the DaemonSet controller decides it: by the node's
//! labels and taints. Pure; the entry point is [`belongs`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// The taints that the DaemonSet controller has its pods tolerate, and for which effects.
const TOLERATED: [(&str, &str); 7] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ("node.kubernetes.io/network-unavailable", "NoSchedule"),
];

/// Whether a pod with this specification belongs on the node.
pub(crate) fn belongs(node: &Node, pod: &PodSpec) -> bool {
    selected(node, pod) && node_taints(node).all(|taint| is_tolerated(taint, pod))
}

fn selected(node: &Node, pod: &PodSpec) -> bool {
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

/// Those that keep pods away.
fn node_taints(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
}

fn is_tolerated(taint: &Taint, pod: &PodSpec) -> bool {
    TOLERATED.contains(&(taint.key.as_str(), taint.effect.as_str()))
        || pod.tolerations.iter().flatten().any(|toleration| tolerates(toleration, taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let of = |field: &Option<String>| field.clone().unwrap_or_default();
    let (key, effect) = (of(&toleration.key), of(&toleration.effect));
    (effect.is_empty() || effect == taint.effect)
        && match of(&toleration.operator).as_str() {
            "Exists" => key.is_empty() || key == taint.key,
            _ => key == taint.key && of(&toleration.value) == of(&taint.value),
        }
}

#[cfg(test)]
mod tests;
