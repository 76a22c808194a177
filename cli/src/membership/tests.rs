use ambit_core::enrolment::{DATAPLANE_MODE, REDIRECTION};
use serde_json::json;

use super::*;

#[test]
fn standing_by_labels_annotations_and_phase() {
    let row = |phase: &str, own: Option<&str>, host: bool, redirected: bool, reason: Option<&str>| {
        let mut annotations = serde_json::Map::new();
        if redirected {
            annotations.insert(REDIRECTION.to_owned(), json!("enabled"));
        }
        annotations.extend(reason.map(|reason| (NOT_CAPTURED.to_owned(), json!(reason))));
        let labels: Labels =
            own.map(|mode| (DATAPLANE_MODE.to_owned(), mode.to_owned())).into_iter().collect();
        let pod = json!({
            "metadata": { "namespace": "shop", "name": "web", "labels": labels, "annotations": annotations },
            "spec": { "hostNetwork": host, "serviceAccountName": "web", "containers": [] },
            "status": { "phase": phase },
        });
        serde_json::from_value::<Pod>(pod).unwrap()
    };
    let host = "host network: its connections cannot be distinguished from the node's";
    let rows = vec![
        ("captured", "ambient", row("Running", None, false, true, None), Some(Standing::Captured)),
        ("awaited", "ambient", row("Running", None, false, false, None), Some(Standing::Awaited)),
        (
            "annotated with the reason",
            "ambient",
            row("Running", None, false, false, Some("too old")),
            Some(Standing::NotCaptured("too old".to_owned())),
        ),
        ("not started", "ambient", row("Pending", None, false, false, None), None),
        ("finished", "ambient", row("Succeeded", None, false, true, None), None),
        ("opted out", "ambient", row("Running", Some("none"), false, false, None), Some(Standing::Outside)),
        (
            "opted out, leaving",
            "ambient",
            row("Running", Some("none"), false, true, None),
            Some(Standing::Leaving),
        ),
        ("by its own label", "", row("Running", Some("ambit"), false, true, None), Some(Standing::Captured)),
        ("released", "", row("Running", None, false, false, None), Some(Standing::Outside)),
        ("not released yet", "", row("Running", None, false, true, None), Some(Standing::Leaving)),
        (
            "on the host's network",
            "ambient",
            row("Running", None, true, false, None),
            Some(Standing::NotCaptured(host.to_owned())),
        ),
    ];
    for (name, mode, pod, expected) in rows {
        let labels: Labels = [(DATAPLANE_MODE.to_owned(), mode.to_owned())].into();
        assert_eq!(standing(&pod, &labels, "ambit-system"), expected, "{name}");
    }
}
