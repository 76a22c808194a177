//! The annotations that Ambit writes on pods: [`annotate`] one, [`sweep`] all.

use ambit_core::enrolment::{self, FIELD_MANAGER, NOT_CAPTURED, REDIRECTION};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::error::is_gone;

/// Pods in one answer of the API server.
const PAGE: u32 = 500;
/// Requests at once where annotations are removed from many pods.
const CONCURRENCY: usize = 16;

/// One pod: a later one of the same name has another uid.
#[derive(Clone, Copy, Debug)]
pub struct PodRef<'a> {
    /// `metadata.namespace`.
    pub namespace: &'a str,
    /// `metadata.name`.
    pub name: &'a str,
    /// `metadata.uid`.
    pub uid: &'a str,
}

/// Sets annotations of a pod; `null` removes one. A pod with another uid is left alone: the API server
/// compares, and its answer is an error ([`crate::error::is_gone`]).
pub async fn annotate(client: &Client, pod: PodRef<'_>, annotations: Value) -> kube::Result<()> {
    let patch = Patch::Merge(json!({ "metadata": { "uid": pod.uid, "annotations": annotations } }));
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let pods: Api<Pod> = Api::namespaced(client.clone(), pod.namespace);
    pods.patch_status(pod.name, &parameters, &patch).await.map(drop)
}

/// Removes Ambit's annotations from the pods that `pods` selects; from how many. Other meshes use one of the
/// names too: what was not written under Ambit's name stays.
pub async fn sweep(client: &Client, pods: &ListParams) -> kube::Result<usize> {
    let api: Api<Pod> = Api::all(client.clone());
    let mut pods = pods.clone().limit(PAGE);
    let mut found = 0;
    loop {
        let page = api.list_metadata(&pods).await?;
        let annotated: Vec<&ObjectMeta> =
            page.items.iter().map(|pod| &pod.metadata).filter(|pod| is_annotated(pod)).collect();
        found += annotated.len();
        futures::stream::iter(annotated)
            .map(|pod| remove(client, pod))
            .buffer_unordered(CONCURRENCY)
            .try_collect::<()>()
            .await?;
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => pods.continue_token = Some(token),
            _ => return Ok(found),
        }
    }
}

/// Removes Ambit's annotations from all pods, again until a whole list shows none: the last request of an
/// agent may still be in progress. `progress` gets the number of each pass.
pub async fn sweep_all(client: &Client, mut progress: impl FnMut(usize)) -> kube::Result<()> {
    loop {
        let pods = sweep(client, &ListParams::default()).await?;
        progress(pods);
        if pods == 0 {
            return Ok(());
        }
    }
}

async fn remove(client: &Client, pod: &ObjectMeta) -> kube::Result<()> {
    let pod = PodRef {
        namespace: pod.namespace.as_deref().unwrap_or_default(),
        name: pod.name.as_deref().unwrap_or_default(),
        uid: pod.uid.as_deref().unwrap_or_default(),
    };
    match annotate(client, pod, json!({ REDIRECTION: null, NOT_CAPTURED: null })).await {
        // It has been replaced or changed since: it was counted, so the caller lists again.
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether a pod has an annotation that was written under Ambit's name.
fn is_annotated(pod: &ObjectMeta) -> bool {
    let managers = pod.managed_fields.iter().flatten().filter_map(|entry| entry.manager.as_deref());
    enrolment::is_annotated_by_us(pod.annotations.as_ref(), managers)
}
