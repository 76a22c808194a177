use serde_json::json;

use super::*;

#[test]
fn progress_of_a_deployment() {
    // (name, generation, seen, available, updated, done, text), two replicas wanted.
    let rows = [
        ("just made", 1, 0, 0, 0, false, "not yet observed by Kubernetes"),
        ("one is there", 1, 1, 1, 2, false, "1 of 2 ready"),
        ("all", 1, 1, 2, 2, true, "2 of 2 ready"),
        ("changed since", 2, 1, 2, 2, false, "not yet observed by Kubernetes"),
        ("of before the change", 2, 2, 2, 1, false, "2 of 2 ready, 1 of the new version"),
    ];
    for (name, generation, observed, available, updated, done, text) in rows {
        let status = json!({
            "observedGeneration": observed, "availableReplicas": available, "updatedReplicas": updated,
            "numberAvailable": available, "updatedNumberScheduled": updated, "desiredNumberScheduled": 2,
            "currentNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": available,
        });
        let object = json!({
            "metadata": { "generation": generation },
            "spec": { "replicas": 2, "selector": {}, "template": {} },
            "status": status,
        });
        let expected = Progress { done, text: text.to_owned() };
        assert_eq!(of_deployment(&serde_json::from_value(object.clone()).unwrap()), expected, "{name}");
        assert_eq!(of_daemon_set(&serde_json::from_value(object).unwrap()), expected, "{name}");
    }
}

fn pod(status: &serde_json::Value) -> Pod {
    let object = json!({ "metadata": { "name": "ztunnel-a" }, "spec": { "nodeName": "n1",
        "containers": [] }, "status": status });
    serde_json::from_value(object).unwrap()
}

fn event(kind: &str, name: &str, reason: &str, second: u32) -> Event {
    let object = json!({
        "metadata": {}, "type": "Warning", "reason": reason, "message": format!("{reason} at {second}\n"),
        "involvedObject": { "kind": kind, "name": name },
            "lastTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
    });
    serde_json::from_value(object).unwrap()
}

#[test]
fn reasons_why_pods_are_not_ready() {
    let state = |state: serde_json::Value| {
        json!({ "containerStatuses": [{ "name": "z", "image": "",
        "imageID": "", "ready": false, "restartCount": 0, "state": state }] })
    };
    let creating = state(json!({ "waiting": { "reason": "ContainerCreating" } }));
    let rows = [
        ("nothing is known", json!({}), vec![], "pod ztunnel-a on n1: starting"),
        (
            "no image",
            state(json!({ "waiting": { "reason": "ErrImagePull", "message": "not found" } })),
            vec![event("Pod", "ztunnel-a", "Failed", 1)],
            "pod ztunnel-a on n1: container z: ErrImagePull: not found",
        ),
        (
            "the last warning",
            creating.clone(),
            vec![event("Pod", "ztunnel-a", "FailedMount", 2), event("Pod", "ztunnel-a", "Old", 1)],
            "pod ztunnel-a on n1: FailedMount: FailedMount at 2",
        ),
        (
            "another's warning",
            creating,
            vec![event("Pod", "b", "FailedMount", 2)],
            "pod ztunnel-a on n1: starting",
        ),
        (
            "ended",
            state(json!({ "terminated": { "exitCode": 2, "reason": "Error" } })),
            vec![],
            "pod ztunnel-a on n1: container z: Error, exit code 2",
        ),
        (
            "no node",
            json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "no CPU" }] }),
            vec![],
            "pod ztunnel-a on n1: Unschedulable: no CPU",
        ),
    ];
    for (name, status, events, expected) in rows {
        assert_eq!(obstacles(&[pod(&status)], &events), [expected], "{name}");
    }
    let ready = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
    assert_eq!(obstacles(&[pod(&ready)], &[event("Pod", "ztunnel-a", "Old", 1)]), Vec::<String>::new());
}

#[test]
fn reasons_why_pods_are_not_created() {
    let events = [event("DaemonSet", "ztunnel", "FailedCreate", 1)];
    assert_eq!(obstacles(&[], &events), ["DaemonSet ztunnel: FailedCreate at 1"]);
    let ready = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
    assert_eq!(obstacles(&[pod(&ready)], &events), Vec::<String>::new(), "one was made since");
}
