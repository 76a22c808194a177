//! Which pods are in the mesh, which should be and are not, and why. Pure.

use ambit_core::enrolment::{self, Answer, Labels, NOT_CAPTURED, Subject};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

/// Where a running pod stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody asked for it to be in the mesh, and it is not.
    Outside,
    /// In the mesh, as asked.
    Captured,
    /// It should be in the mesh; its node has not said that it is.
    Awaited,
    /// It is labelled and cannot be in the mesh.
    NotCaptured(String),
    /// Nobody asks any more, and its node has not let go of it yet.
    Leaving,
}

/// Where a pod stands; none where it does not run.
pub(crate) fn standing(pod: &Pod, namespace_labels: &Labels, system: &str) -> Option<Standing> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase != Some("Running") || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let namespace = pod.namespace().unwrap_or_default();
    let subject = Subject {
        namespace: &namespace,
        namespace_labels: Some(namespace_labels),
        pod_labels: pod.metadata.labels.as_ref(),
        host_network: pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default(),
        finished: false,
        system_namespace: system,
    };
    let answer = subject.judge();
    let captured = enrolment::is_redirected(pod.annotations());
    let said = pod.annotations().get(NOT_CAPTURED);
    Some(match answer {
        Answer::Desired if captured => Standing::Captured,
        Answer::Desired => said.map_or(Standing::Awaited, |why| Standing::NotCaptured(why.clone())),
        other => match other.not_captured() {
            // The node's own word, if it has said more.
            Some(why) => Standing::NotCaptured(said.map_or(why, String::as_str).to_owned()),
            None if captured => Standing::Leaving,
            None => Standing::Outside,
        },
    })
}

#[cfg(test)]
mod tests {
    use ambit_core::enrolment::{DATAPLANE_MODE, REDIRECTION};
    use serde_json::json;

    use super::*;

    #[test]
    fn where_pods_stand() {
        let row = |phase: &str, own: Option<&str>, host: bool, redirected: bool, said: Option<&str>| {
            let mut annotations = serde_json::Map::new();
            if redirected {
                annotations.insert(REDIRECTION.to_owned(), json!("enabled"));
            }
            annotations.extend(said.map(|why| (NOT_CAPTURED.to_owned(), json!(why))));
            let labels: Labels =
                own.map(|mode| (DATAPLANE_MODE.to_owned(), mode.to_owned())).into_iter().collect();
            let pod = json!({
                "metadata": { "namespace": "shop", "name": "web", "labels": labels, "annotations": annotations },
                "spec": { "hostNetwork": host, "containers": [] }, "status": { "phase": phase },
            });
            serde_json::from_value::<Pod>(pod).unwrap()
        };
        let host = "host network: its connections cannot be told from the node's";
        let rows = vec![
            ("captured", "ambient", row("Running", None, false, true, None), Some(Standing::Captured)),
            ("awaited", "ambient", row("Running", None, false, false, None), Some(Standing::Awaited)),
            (
                "the node says why",
                "ambient",
                row("Running", None, false, false, Some("too old")),
                Some(Standing::NotCaptured("too old".to_owned())),
            ),
            ("not started", "ambient", row("Pending", None, false, false, None), None),
            ("finished", "ambient", row("Succeeded", None, false, true, None), None),
            (
                "opted out",
                "ambient",
                row("Running", Some("none"), false, false, None),
                Some(Standing::Outside),
            ),
            (
                "opted out, leaving",
                "ambient",
                row("Running", Some("none"), false, true, None),
                Some(Standing::Leaving),
            ),
            ("by itself", "", row("Running", Some("ambit"), false, true, None), Some(Standing::Captured)),
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
}
