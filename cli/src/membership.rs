//! Which running pods are in the mesh, which should be and are not, and why. Pure.

use ambit_core::enrolment::{self, Account, Candidate, Eligibility, Labels, NOT_CAPTURED};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

/// Whether a running pod is in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not labelled, and not in the mesh.
    Outside,
    /// Labelled, and in the mesh.
    Captured,
    /// Labelled; its node has not enrolled it yet.
    Awaited,
    /// Labelled, but it cannot be in the mesh; the reason.
    NotCaptured(String),
    /// No longer labelled; its node has not released it yet.
    Leaving,
}

/// The standing of a pod; none if it is not running.
pub(crate) fn standing(pod: &Pod, namespace_labels: &Labels, system: &str) -> Option<Standing> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase != Some("Running") || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let namespace = pod.namespace().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    let subject = Candidate {
        namespace: &namespace,
        namespace_labels: Some(namespace_labels),
        pod_labels: pod.metadata.labels.as_ref(),
        account: Account::of(account.unwrap_or_default(), pod.annotations()),
        host_network: pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default(),
        finished: false,
        system_namespace: system,
    };
    let answer = subject.evaluate();
    let captured = enrolment::is_redirected(pod.annotations());
    let reason = pod.annotations().get(NOT_CAPTURED);
    Some(match answer {
        Eligibility::Desired if captured => Standing::Captured,
        Eligibility::Desired => {
            reason.map_or(Standing::Awaited, |reason| Standing::NotCaptured(reason.clone()))
        }
        other => match other.not_captured() {
            // The node's annotation goes first: it may say more.
            Some(rule) => Standing::NotCaptured(reason.map_or(rule, String::as_str).to_owned()),
            None if captured => Standing::Leaving,
            None => Standing::Outside,
        },
    })
}

#[cfg(test)]
mod tests;
