use serde_json::{Value, json};

use super::*;

fn belongs_to(node: &Value, pod: &Value) -> bool {
    let mut pod = pod.clone();
    pod["containers"] = json!([]);
    let node = serde_json::from_value(node.clone()).unwrap();
    belongs(&node, &serde_json::from_value(pod).unwrap())
}

fn affinity(terms: &Value) -> Value {
    json!({"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
}

#[test]
fn placement_by_labels_and_names() {
    let node = json!({"metadata": {"name": "node1", "labels": {"disk": "ssd", "cores": "8"}}});
    let expression = |key: &str, operator: &str, values: &Value| {
        affinity(&json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
    };
    let field = |name: &str| {
        let field = json!({"key": "metadata.name", "operator": "In", "values": [name]});
        affinity(&json!([{"matchFields": [field]}]))
    };
    let rows = [
        ("anywhere", json!({}), true),
        ("its label", json!({"nodeSelector": {"disk": "ssd"}}), true),
        ("another value", json!({"nodeSelector": {"disk": "hdd"}}), false),
        ("a label it lacks", json!({"nodeSelector": {"gpu": "yes"}}), false),
        ("one of two labels", json!({"nodeSelector": {"disk": "ssd", "gpu": "yes"}}), false),
        ("in", expression("disk", "In", &json!(["hdd", "ssd"])), true),
        ("not in", expression("disk", "NotIn", &json!(["ssd"])), false),
        ("not in, without the label", expression("gpu", "NotIn", &json!(["yes"])), true),
        ("exists", expression("disk", "Exists", &json!([])), true),
        ("does not exist", expression("disk", "DoesNotExist", &json!([])), false),
        ("greater", expression("cores", "Gt", &json!(["4"])), true),
        ("not greater", expression("cores", "Gt", &json!(["8"])), false),
        ("less", expression("cores", "Lt", &json!(["16"])), true),
        ("no number", expression("disk", "Gt", &json!(["4"])), false),
        ("an operator of the future", expression("disk", "Like", &json!(["x"])), true),
        ("its name", field("node1"), true),
        ("another name", field("node2"), false),
        ("no term", affinity(&json!([])), false),
        ("an empty term", affinity(&json!([{}])), false),
        (
            "one of two terms",
            affinity(&json!([{}, {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}])),
            true,
        ),
    ];
    for (name, pod, expected) in rows {
        assert_eq!(belongs_to(&node, &pod), expected, "{name}");
    }
}

/// They come and go by others' hands, for a while: a node that is drained would open the mesh's pods that
/// stay on it.
#[test]
fn taints_do_not_take_a_node_out() {
    for effect in ["NoSchedule", "NoExecute", "PreferNoSchedule"] {
        let node = json!({
            "metadata": {"name": "node1"},
            "spec": {"taints": [{"key": "maintenance", "effect": effect}], "unschedulable": true},
        });
        assert!(belongs_to(&node, &json!({})), "{effect}");
    }
}
