use kube::ResourceExt as _;
use serde_json::json;

use super::*;

fn pod(name: &str, node: &str, phase: &str, ready: bool) -> Pod {
    let status = if ready { "True" } else { "False" };
    let pod = json!({
        "metadata": { "name": name }, "spec": { "nodeName": node, "containers": [] },
        "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": status }] },
    });
    serde_json::from_value(pod).unwrap()
}

#[test]
fn one_pod_per_node_is_queried() {
    let all = [
        pod("starts", "n1", "Pending", false),
        pod("next", "n1", "Running", false),
        pod("serves", "n1", "Running", true),
        pod("alone", "n2", "Running", false),
    ];
    let rows: [(&str, Option<&str>, &[&str]); 4] = [
        ("all", None, &["serves", "alone"]),
        ("one of two", Some("n1"), &["serves"]),
        ("not ready, and there is no other", Some("n2"), &["alone"]),
        ("none", Some("n3"), &[]),
    ];
    for (name, node, expected) in rows {
        let chosen = choose(&all, node).unwrap_or_default();
        assert_eq!(chosen.iter().map(|(_, pod)| pod.name_any()).collect::<Vec<_>>(), expected, "{name}");
    }
    let error = choose(&all, Some("n3")).unwrap_err().to_string();
    assert_eq!(error, "no ztunnel runs on n3: see `ambit check`");
}

#[test]
fn one_answer_is_unchanged_and_several_are_by_node() {
    let answers = || vec![("n1".to_owned(), json!([1])), ("n2".to_owned(), json!([]))];
    assert_eq!(json(answers(), true), json!([1]));
    assert_eq!(json(answers(), false), json!({ "n1": [1], "n2": [] }));
}
