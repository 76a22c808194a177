//! What is read from the cluster.

use ambit_kube::error::{chain, is_not_found};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod};
use kube::api::{Api, DynamicObject, ListParams, ObjectMeta};
use kube::{Client, ResourceExt as _};

use serde_json::Value;

use crate::cluster::{ALL_PODS, CONTROLLER, NAME, ZTUNNEL, api_of};
use crate::error::{Error, api};
use crate::forward;
use crate::manifests::{self, Manifest};
use crate::rollout::{Running, is_ready};

/// The input of `ambit check`.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// The definitions that Ambit needs: ours, and the cluster's.
    pub(crate) definitions: Vec<(Manifest, Option<DynamicObject>)>,
    pub(crate) running: Running,
    pub(crate) nodes: Vec<Node>,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) pods: Vec<Pod>,
    /// The objects of the kinds that Ambit defines, with their kind.
    pub(crate) objects: Vec<(String, DynamicObject)>,
    /// What each node's daemon says of its pods' links, or why it says nothing.
    pub(crate) links: Vec<(String, Result<Value, String>)>,
}

/// Reads the input of `ambit check`.
pub(crate) async fn gather(client: &Client, system: &str) -> Result<Facts, Error> {
    let all = ListParams::default();
    let mut facts = Facts {
        running: running(client, system).await?,
        nodes: Api::<Node>::all(client.clone()).list(&all).await.map_err(api("list nodes"))?.items,
        namespaces: Api::<Namespace>::all(client.clone())
            .list(&all)
            .await
            .map_err(api("list namespaces"))?
            .items,
        pods: Api::<Pod>::all(client.clone()).list(&all).await.map_err(api("list pods"))?.items,
        ..Facts::default()
    };
    for ours in manifests::definitions()? {
        let found = get(client, &ours).await?;
        if found.is_some()
            && let Some(kind) = manifests::defined(&ours)
        {
            let objects: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
            match objects.list(&all).await {
                Ok(list) => facts.objects.extend(list.items.into_iter().map(|it| (kind.kind.clone(), it))),
                // Defined, but not in this version: the check of the definitions reports it.
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(api(format!("list {}", kind.plural))(error)),
            }
        }
        facts.definitions.push((ours, found));
    }
    for pod in facts.running.pods.iter().filter(|pod| is_daemon(pod)) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let links = forward::query_pod(client, pod, "/links").await;
        facts.links.push((node, links.map_err(|error| chain(&error))));
    }
    Ok(facts)
}

/// Whether a pod is a node daemon that answers.
fn is_daemon(pod: &Pod) -> bool {
    pod.labels().get(NAME).is_some_and(|name| name == ZTUNNEL) && is_ready(pod)
}

/// The workloads of Ambit in all namespaces, also of other installers.
pub(crate) async fn installations(client: &Client) -> Result<Vec<(&'static str, ObjectMeta)>, Error> {
    let ambits = ListParams::default().labels(ALL_PODS);
    let deployments = Api::<Deployment>::all(client.clone()).list_metadata(&ambits).await;
    let daemon_sets = Api::<DaemonSet>::all(client.clone()).list_metadata(&ambits).await;
    let deployments = deployments.map_err(api("list Deployments"))?.items.into_iter();
    let daemon_sets = daemon_sets.map_err(api("list DaemonSets"))?.items.into_iter();
    let deployments = deployments.map(|it| ("Deployment", it.metadata));
    Ok(deployments.chain(daemon_sets.map(|it| ("DaemonSet", it.metadata))).collect())
}

/// The workloads of Ambit in its namespace, their pods and the warnings about them.
pub(crate) async fn running(client: &Client, system: &str) -> Result<Running, Error> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), system);
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), system);
    let events: Api<Event> = Api::namespaced(client.clone(), system);
    Ok(Running {
        controller: deployments.get_opt(CONTROLLER).await.map_err(api("read the controller's Deployment"))?,
        ztunnel: daemon_sets.get_opt(ZTUNNEL).await.map_err(api("read ztunnel's DaemonSet"))?,
        pods: pods(client, system, ALL_PODS).await?,
        events: events
            .list(&ListParams::default().fields("type=Warning"))
            .await
            .map_err(api("list events"))?
            .items,
    })
}

/// The pods of a namespace that match a label selector.
pub(crate) async fn pods(client: &Client, namespace: &str, selector: &str) -> Result<Vec<Pod>, Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let list = pods.list(&ListParams::default().labels(selector)).await;
    Ok(list.map_err(api(format!("list the pods of {namespace}")))?.items)
}

/// The cluster's object with the name of a manifest.
pub(crate) async fn get(client: &Client, manifest: &Manifest) -> Result<Option<DynamicObject>, Error> {
    api_of(client, manifest).get_opt(manifest.name()).await.map_err(api(format!("read {}", manifest.title())))
}
