//! The API server, as the agent needs it: what it says about a pod now, and the annotations.

use std::collections::BTreeMap;

use ambit_core::enrolment::{
    self, DATAPLANE_MODE, FIELD_MANAGER, Labels, NOT_CAPTURED, REDIRECTION, REDIRECTION_ENABLED, exclusion,
};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use super::state::{Event, PodKey, Seen, State};

/// On the API's image of a pod that a kubelet started from a file of its own.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// How many pods one answer holds.
const PAGE: u32 = 500;
/// Requests at once where annotations are taken off many pods.
const AT_ONCE: usize = 16;

/// A way to the API server, for the pods of one node.
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

    /// A machine that knows nothing yet.
    pub(crate) fn state(&self) -> State {
        State::new(&self.system_namespace, self.excluded.iter().cloned())
    }

    /// Whether the pod of this name is to be in the mesh on this node, by what the API server says now:
    /// watches lag.
    pub(crate) async fn desires(&self, key: &PodKey) -> kube::Result<bool> {
        let Some(pod) = self.pods(&key.namespace).get_opt(&key.name).await? else { return Ok(false) };
        if pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) != Some(self.node.as_str()) {
            return Ok(false);
        }
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let Some(namespace) = namespaces.get_metadata_opt(&key.namespace).await? else { return Ok(false) };
        let mut state = self.state();
        let now = std::time::Instant::now();
        state.handle(Event::Namespace(key.namespace.clone(), relevant(namespace.labels())), now);
        state.handle(Event::Pod(key.clone(), seen(&pod)), now);
        Ok(state.desires(key))
    }

    /// Says that a pod is captured, or no longer.
    pub(crate) async fn redirect(&self, key: &PodKey, uid: &str, on: bool) -> kube::Result<()> {
        let value = on.then_some(REDIRECTION_ENABLED);
        self.annotate(key, uid, json!({ REDIRECTION: value })).await
    }

    /// Says why a pod is not captured, or what of it, or no longer.
    pub(crate) async fn mark(&self, key: &PodKey, uid: &str, why: Option<&str>) -> kube::Result<()> {
        self.annotate(key, uid, json!({ NOT_CAPTURED: why })).await
    }

    /// Takes our annotations off all pods of the node; says off how many.
    pub(crate) async fn forget_all(&self) -> kube::Result<usize> {
        forget(&self.client, &ListParams::default().fields(&self.selector())).await
    }

    async fn annotate(&self, key: &PodKey, uid: &str, annotations: serde_json::Value) -> kube::Result<()> {
        annotate(&self.client, key, uid, annotations).await
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// Takes our annotations off the pods that are listed; says on how many there were some. What is not ours to
/// take off stays.
pub(crate) async fn forget(client: &Client, pods: &ListParams) -> kube::Result<usize> {
    let api: Api<Pod> = Api::all(client.clone());
    let mut pods = pods.clone().limit(PAGE);
    let mut found = 0;
    loop {
        let page = api.list_metadata(&pods).await?;
        let ours = page.items.iter().filter_map(|pod| annotated(&pod.metadata));
        let ours: Vec<(PodKey, String)> = ours.collect();
        found += ours.len();
        let off = |(key, uid): (PodKey, String)| async move {
            let nothing: BTreeMap<&str, Option<&str>> = [(REDIRECTION, None), (NOT_CAPTURED, None)].into();
            match annotate(client, &key, &uid, json!(nothing)).await {
                // Whoever changed it meanwhile is looked at again: the number says that there was one.
                Err(error) if !is_gone(&error) => Err(error),
                _ => Ok(()),
            }
        };
        futures::stream::iter(ours).map(off).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => pods.continue_token = Some(token),
            _ => return Ok(found),
        }
    }
}

/// A pod that has an annotation of ours: one that was written under our name.
fn annotated(pod: &ObjectMeta) -> Option<(PodKey, String)> {
    let managers = pod.managed_fields.iter().flatten().filter_map(|entry| entry.manager.as_deref());
    let ours = enrolment::wrote(pod.annotations.as_ref(), managers);
    let key = PodKey { namespace: pod.namespace.clone()?, name: pod.name.clone()? };
    Some((key, pod.uid.clone()?)).filter(|_| ours)
}

/// On the pod with this uid and no other (the API server compares).
async fn annotate(
    client: &Client,
    key: &PodKey,
    uid: &str,
    annotations: serde_json::Value,
) -> kube::Result<()> {
    let patch = Patch::Merge(json!({ "metadata": { "uid": uid, "annotations": annotations } }));
    let pods: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let named = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    pods.patch_status(&key.name, &named, &patch).await.map(|_| ())
}

/// The pod is not there any more, or another has taken its name.
pub(crate) fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

/// What names a pod.
pub(crate) fn key(pod: &Pod) -> Option<PodKey> {
    Some(PodKey { namespace: pod.namespace()?, name: pod.metadata.name.clone()? })
}

/// What matters of a pod.
pub(crate) fn seen(pod: &Pod) -> Seen {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network);
    Seen {
        uid: pod.uid().unwrap_or_default(),
        labels: relevant(pod.labels()),
        host_network: host_network.unwrap_or_default(),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        mirror: pod.annotations().contains_key(MIRROR),
        redirected: enrolment::is_redirected(pod.annotations()),
        not_captured: pod.annotations().get(NOT_CAPTURED).cloned(),
        excluded: exclusion::describe(pod.annotations()),
    }
}

/// The labels that the rule reads.
pub(crate) fn relevant(labels: &Labels) -> Labels {
    let mode = labels.get(DATAPLANE_MODE);
    mode.map(|mode| (DATAPLANE_MODE.to_owned(), mode.clone())).into_iter().collect()
}
