//! The API server, as the agent needs it: the present state of a pod, and the annotations.

use std::time::Duration;

use ambit_core::enrolment::{
    self, Account, DATAPLANE_MODE, Labels, NOT_CAPTURED, REDIRECTION, REDIRECTION_ENABLED, exclusion,
};
use ambit_kube::annotations::{self, PodRef};
use ambit_kube::retry::{RequestError, within};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use super::pod::{PodKey, Seen};
use super::state::{Event, State};

/// The deadline of one request.
const DEADLINE: Duration = Duration::from_secs(10);

/// An API client for the pods of one node.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(crate) system_namespace: String,
    pub(crate) excluded: Vec<String>,
}

impl Cluster {
    /// Selects the node's pods.
    pub(crate) fn selector(&self) -> String {
        format!("spec.nodeName={}", self.node)
    }

    /// A state machine without pods.
    pub(crate) fn state(&self) -> State {
        State::new(&self.system_namespace, self.excluded.iter().cloned())
    }

    /// The pod of this name on this node, as the API server says now: watches lag, and lists from its cache
    /// too.
    pub(crate) async fn pod(&self, key: &PodKey) -> Result<Option<Pod>, RequestError> {
        let pod = within(DEADLINE, self.pods(&key.namespace).get_opt(&key.name)).await?;
        let here = |pod: &Pod| {
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(self.node.as_str())
        };
        Ok(pod.filter(here))
    }

    /// Whether the pod of this name should be in the mesh on this node, as the API server says now.
    pub(crate) async fn desires(&self, key: &PodKey) -> Result<bool, RequestError> {
        let Some(pod) = self.pod(key).await? else { return Ok(false) };
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let namespace = within(DEADLINE, namespaces.get_metadata_opt(&key.namespace)).await?;
        let Some(namespace) = namespace else { return Ok(false) };
        let mut state = self.state();
        let now = std::time::Instant::now();
        state.handle(Event::Namespace(key.namespace.clone(), relevant(namespace.labels())), now);
        state.handle(Event::Pod(key.clone(), seen(&pod)), now);
        Ok(state.desires(key))
    }

    /// Annotates a pod as captured, or removes that annotation.
    pub(crate) async fn annotate_captured(
        &self,
        key: &PodKey,
        uid: &str,
        on: bool,
    ) -> Result<(), RequestError> {
        let value = on.then_some(REDIRECTION_ENABLED);
        self.annotate(key, uid, json!({ REDIRECTION: value })).await
    }

    /// Annotates a pod with why it, or a part of its ports, is not captured; or removes that annotation.
    pub(crate) async fn annotate_not_captured(
        &self,
        key: &PodKey,
        uid: &str,
        why: Option<&str>,
    ) -> Result<(), RequestError> {
        self.annotate(key, uid, json!({ NOT_CAPTURED: why })).await
    }

    /// Removes our annotations from all pods of the node; from how many.
    pub(crate) async fn remove_annotations(&self) -> kube::Result<usize> {
        annotations::sweep(&self.client, &ListParams::default().fields(&self.selector())).await
    }

    async fn annotate(
        &self,
        key: &PodKey,
        uid: &str,
        annotations: serde_json::Value,
    ) -> Result<(), RequestError> {
        let pod = PodRef { namespace: &key.namespace, name: &key.name, uid };
        within(DEADLINE, annotations::annotate(&self.client, pod, annotations)).await
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// The key of a pod.
pub(crate) fn key(pod: &Pod) -> Option<PodKey> {
    Some(PodKey { namespace: pod.namespace()?, name: pod.metadata.name.clone()? })
}

/// What the state machine reads of a pod.
pub(crate) fn seen(pod: &Pod) -> Seen {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network);
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    Seen {
        uid: pod.uid().unwrap_or_default(),
        labels: relevant(pod.labels()),
        host_network: host_network.unwrap_or_default(),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        account: Account::of(account.unwrap_or_default(), pod.annotations()),
        redirected: enrolment::is_redirected(pod.annotations()),
        not_captured: pod.annotations().get(NOT_CAPTURED).cloned(),
        excluded: exclusion::describe(pod.annotations()),
    }
}

/// The labels that the enrolment rule reads.
pub(crate) fn relevant(labels: &Labels) -> Labels {
    let mode = labels.get(DATAPLANE_MODE);
    mode.map(|mode| (DATAPLANE_MODE.to_owned(), mode.clone())).into_iter().collect()
}
