//! How far the rollout of Ambit's workloads is, and what delays their pods. Pure.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use kube::ResourceExt as _;

/// How far the rollout of a workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// All replicas are ready and of the current version.
    pub(crate) done: bool,
    /// `2 of 2 ready`, and details.
    pub(crate) text: String,
}

impl Progress {
    fn new(ready: i32, wanted: i32, current: i32, seen: bool) -> Self {
        if !seen {
            // The counts are those of before the last change.
            return Self { done: false, text: "not yet observed by Kubernetes".to_owned() };
        }
        let done = ready >= wanted && current >= wanted;
        let outdated =
            if ready >= wanted && !done { format!(", {current} of the new version") } else { String::new() };
        Self { done, text: format!("{ready} of {wanted} ready{outdated}") }
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

/// The workloads of Ambit in its namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running {
    pub(crate) controller: Option<Deployment>,
    pub(crate) ztunnel: Option<DaemonSet>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) events: Vec<Event>,
}

impl Running {
    /// What is missing until everything is ready, one item per line.
    pub(crate) fn missing(&self) -> Vec<String> {
        let parts = [
            ("Deployment ambit-controller", self.controller.as_ref().map(of_deployment)),
            ("DaemonSet ztunnel", self.ztunnel.as_ref().map(of_daemon_set)),
        ];
        let line = |(name, progress): (&str, Option<Progress>)| match progress {
            None => Some(format!("{name}: missing")),
            Some(progress) => (!progress.done).then(|| format!("{name}: {}", progress.text)),
        };
        let mut lines: Vec<String> = parts.into_iter().filter_map(line).collect();
        if !lines.is_empty() {
            lines.extend(obstacles(&self.pods, &self.events));
        }
        lines
    }
}

/// Whether a pod is ready and not being deleted.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.is_some_and(|all| {
        all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// Why pods are not ready, and why pods are not even created: one line each.
pub(crate) fn obstacles(pods: &[Pod], events: &[Event]) -> Vec<String> {
    let not_deleted = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
    let mut lines: Vec<String> = pods
        .iter()
        .filter(|pod| !is_ready(pod))
        .filter(not_deleted)
        .map(|pod| {
            let name = pod.name_any();
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            let place = node.map(|node| format!(" on {node}")).unwrap_or_default();
            let reason = waiting(pod)
                .or_else(|| warning(events, "Pod", &name))
                .or_else(|| not_scheduled(pod))
                .unwrap_or_else(|| "starting".to_owned());
            format!("pod {name}{place}: {reason}")
        })
        .collect();
    // Quotas and admission: there is no pod to look at.
    for kind in ["ReplicaSet", "DaemonSet"] {
        for event in events.iter().filter(|event| event.involved_object.kind.as_deref() == Some(kind)) {
            let failed = event.reason.as_deref() == Some("FailedCreate");
            let name = event.involved_object.name.as_deref().unwrap_or_default();
            let line = format!("{kind} {name}: {}", event.message.as_deref().unwrap_or_default().trim());
            // Only while none of its pods exists.
            if failed && !pods.iter().any(|pod| pod.name_any().starts_with(name)) && !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines
}

/// A container that cannot start, or has ended.
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
        // Every pod passes through these.
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
mod tests;
