//! How far a workload of Ambit's is, and what holds its pods up. Pure.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use kube::ResourceExt as _;

/// How far a workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) done: bool,
    /// `2 of 2 ready`, and what else is to be said.
    pub(crate) text: String,
}

impl Progress {
    fn new(ready: i32, wanted: i32, current: i32, seen: bool) -> Self {
        if !seen {
            // Counts of before the last change say nothing of it.
            return Self { done: false, text: "Kubernetes has not taken it up yet".to_owned() };
        }
        let done = ready >= wanted && current >= wanted;
        let older =
            if ready >= wanted && !done { format!(", {current} of the new version") } else { String::new() };
        Self { done, text: format!("{ready} of {wanted} ready{older}") }
    }
}

pub(crate) fn of_deployment(deployment: &Deployment) -> Progress {
    let status = deployment.status.clone().unwrap_or_default();
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let seen = status.observed_generation >= deployment.metadata.generation;
    Progress::new(status.available_replicas.unwrap_or(0), wanted, status.updated_replicas.unwrap_or(0), seen)
}

pub(crate) fn of_daemon_set(daemon_set: &DaemonSet) -> Progress {
    let status = daemon_set.status.clone().unwrap_or_default();
    let seen = status.observed_generation >= daemon_set.metadata.generation;
    Progress::new(
        status.number_available.unwrap_or(0),
        status.desired_number_scheduled,
        status.updated_number_scheduled.unwrap_or(0),
        seen,
    )
}

/// What runs of Ambit in a cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running {
    pub(crate) controller: Option<Deployment>,
    pub(crate) ztunnel: Option<DaemonSet>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) events: Vec<Event>,
}

impl Running {
    /// What is missing until everything is ready, one thing a line.
    pub(crate) fn missing(&self) -> Vec<String> {
        let parts = [
            ("Deployment ambit-controller", self.controller.as_ref().map(of_deployment)),
            ("DaemonSet ztunnel", self.ztunnel.as_ref().map(of_daemon_set)),
        ];
        let waits = |(name, progress): (&str, Option<Progress>)| match progress {
            None => Some(format!("{name}: is not there")),
            Some(progress) => (!progress.done).then(|| format!("{name}: {}", progress.text)),
        };
        let mut lines: Vec<String> = parts.into_iter().filter_map(waits).collect();
        if !lines.is_empty() {
            lines.extend(obstacles(&self.pods, &self.events));
        }
        lines
    }
}

/// Whether a pod says that it is ready and is not on its way out.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.is_some_and(|all| {
        all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// What holds each pod up that is not ready, and why pods are not even made: one line each.
pub(crate) fn obstacles(pods: &[Pod], events: &[Event]) -> Vec<String> {
    let leaving = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
    let mut lines: Vec<String> = pods
        .iter()
        .filter(|pod| !is_ready(pod))
        .filter(leaving)
        .map(|pod| {
            let name = pod.name_any();
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            let place = node.map(|node| format!(" on {node}")).unwrap_or_default();
            let why = waiting(pod)
                .or_else(|| warning(events, "Pod", &name))
                .or_else(|| not_scheduled(pod))
                .unwrap_or_else(|| "starting".to_owned());
            format!("pod {name}{place}: {why}")
        })
        .collect();
    // Quotas, admission: there is no pod to look at.
    for kind in ["ReplicaSet", "DaemonSet"] {
        for event in events.iter().filter(|event| event.involved_object.kind.as_deref() == Some(kind)) {
            let failed = event.reason.as_deref() == Some("FailedCreate");
            let name = event.involved_object.name.as_deref().unwrap_or_default();
            let line = format!("{kind} {name}: {}", event.message.as_deref().unwrap_or_default().trim());
            // As long as none of its pods came to be.
            if failed && !pods.iter().any(|pod| pod.name_any().starts_with(name)) && !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines
}

/// A container that cannot start, or does not stay.
fn waiting(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let mut all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.find_map(container)
}

fn container(status: &ContainerStatus) -> Option<String> {
    let name = &status.name;
    let now = status.state.as_ref()?;
    if let Some(waiting) = &now.waiting {
        let reason = waiting.reason.as_deref()?;
        // What every pod goes through.
        if ["ContainerCreating", "PodInitializing"].contains(&reason) {
            return None;
        }
        let message = waiting.message.as_deref().map(|text| format!(": {}", text.trim())).unwrap_or_default();
        return Some(format!("container {name}: {reason}{message}"));
    }
    let ended = now.terminated.as_ref()?;
    let reason = ended.reason.as_deref().unwrap_or("ended");
    (ended.exit_code != 0).then(|| format!("container {name}: {reason}, exit code {}", ended.exit_code))
}

/// The last warning about an object.
fn warning(events: &[Event], kind: &str, name: &str) -> Option<String> {
    let about = |event: &&Event| {
        event.type_.as_deref() == Some("Warning")
            && event.involved_object.kind.as_deref() == Some(kind)
            && event.involved_object.name.as_deref() == Some(name)
    };
    let last = events.iter().filter(about).max_by_key(|event| event.last_timestamp.clone())?;
    let reason = last.reason.as_deref().unwrap_or("warning");
    Some(format!("{reason}: {}", last.message.as_deref().unwrap_or_default().trim()))
}

fn not_scheduled(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let failed = |name: &str| conditions.iter().find(|it| it.type_ == name && it.status == "False");
    let condition = failed("PodScheduled").or_else(|| failed("Ready"))?;
    let reason = condition.reason.as_deref().unwrap_or("not ready");
    let message = condition.message.as_deref().map(|text| format!(": {text}")).unwrap_or_default();
    Some(format!("{reason}{message}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn how_far_a_deployment_is() {
        // (name, generation, seen, available, updated, done, text), two replicas wanted.
        let rows = [
            ("just made", 1, 0, 0, 0, false, "Kubernetes has not taken it up yet"),
            ("one is there", 1, 1, 1, 2, false, "1 of 2 ready"),
            ("all", 1, 1, 2, 2, true, "2 of 2 ready"),
            ("changed since", 2, 1, 2, 2, false, "Kubernetes has not taken it up yet"),
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
        let object = json!({ "metadata": { "name": "ztunnel-a" }, "spec": { "nodeName": "n1", "containers": [] }, "status": status });
        serde_json::from_value(object).unwrap()
    }

    fn event(kind: &str, name: &str, reason: &str, second: u32) -> Event {
        let object = json!({
            "metadata": {}, "type": "Warning", "reason": reason, "message": format!("{reason} at {second}\n"),
            "involvedObject": { "kind": kind, "name": name }, "lastTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn what_holds_pods_up() {
        let state = |state: serde_json::Value| json!({ "containerStatuses": [{ "name": "z", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state }] });
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
                json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no CPU" }] }),
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
    fn pods_that_are_not_even_made() {
        let events = [event("DaemonSet", "ztunnel", "FailedCreate", 1)];
        assert_eq!(obstacles(&[], &events), ["DaemonSet ztunnel: FailedCreate at 1"]);
        let ready = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
        assert_eq!(obstacles(&[pod(&ready)], &events), Vec::<String>::new(), "one was made since");
    }
}
