//! What the cluster says, read at once.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod};
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams, ObjectMeta};

use crate::cluster::{ALL_PODS, CONTROLLER, ZTUNNEL, part};
use crate::error::{Error, api, is_absent};
use crate::manifests::{self, Manifest};
use crate::rollout::Running;

/// Everything that `ambit check` looks at.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Of the definitions that Ambit needs: ours, and what is there.
    pub(crate) definitions: Vec<(Manifest, Option<DynamicObject>)>,
    pub(crate) running: Running,
    pub(crate) nodes: Vec<Node>,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) pods: Vec<Pod>,
    /// The objects of the kinds that Ambit defines, with their kind.
    pub(crate) objects: Vec<(String, DynamicObject)>,
}

/// Reads all of it.
pub(crate) async fn gather(client: &Client, system: &str) -> Result<Facts, Error> {
    let all = ListParams::default();
    let mut facts = Facts {
        running: running(client, system).await?,
        nodes: Api::<Node>::all(client.clone()).list(&all).await.map_err(api("listing nodes"))?.items,
        namespaces: Api::<Namespace>::all(client.clone())
            .list(&all)
            .await
            .map_err(api("listing namespaces"))?
            .items,
        pods: Api::<Pod>::all(client.clone()).list(&all).await.map_err(api("listing pods"))?.items,
        ..Facts::default()
    };
    for ours in manifests::definitions()? {
        let there = get(client, &ours).await?;
        if there.is_some()
            && let Some(kind) = manifests::defined(&ours)
        {
            let objects: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
            match objects.list(&all).await {
                Ok(list) => facts.objects.extend(list.items.into_iter().map(|it| (kind.kind.clone(), it))),
                // Defined, and not in this version: the row of the definitions says so.
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(api(format!("listing {}", kind.plural))(error)),
            }
        }
        facts.definitions.push((ours, there));
    }
    Ok(facts)
}

/// What runs of Ambit in any namespace, whoever installed it.
pub(crate) async fn installations(client: &Client) -> Result<Vec<(&'static str, ObjectMeta)>, Error> {
    let ambits = ListParams::default().labels(ALL_PODS);
    let deployments = Api::<Deployment>::all(client.clone()).list_metadata(&ambits).await;
    let daemon_sets = Api::<DaemonSet>::all(client.clone()).list_metadata(&ambits).await;
    let deployments = deployments.map_err(api("listing Deployments"))?.items.into_iter();
    let daemon_sets = daemon_sets.map_err(api("listing DaemonSets"))?.items.into_iter();
    let deployments = deployments.map(|it| ("Deployment", it.metadata));
    Ok(deployments.chain(daemon_sets.map(|it| ("DaemonSet", it.metadata))).collect())
}

/// What runs of Ambit.
pub(crate) async fn running(client: &Client, system: &str) -> Result<Running, Error> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), system);
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), system);
    let events: Api<Event> = Api::namespaced(client.clone(), system);
    Ok(Running {
        controller: deployments
            .get_opt(CONTROLLER)
            .await
            .map_err(api("reading the controller's Deployment"))?,
        ztunnel: daemon_sets.get_opt(ZTUNNEL).await.map_err(api("reading ztunnel's DaemonSet"))?,
        pods: pods(client, system, ALL_PODS).await?,
        events: events
            .list(&ListParams::default().fields("type=Warning"))
            .await
            .map_err(api("listing events"))?
            .items,
    })
}

/// Pods of a namespace that a selector finds.
pub(crate) async fn pods(client: &Client, namespace: &str, selector: &str) -> Result<Vec<Pod>, Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let list = pods.list(&ListParams::default().labels(selector)).await;
    Ok(list.map_err(api(format!("listing the pods of {namespace}")))?.items)
}

/// What the cluster has under the name of a manifest.
pub(crate) async fn get(client: &Client, manifest: &Manifest) -> Result<Option<DynamicObject>, Error> {
    part(client, manifest)
        .get_opt(manifest.name())
        .await
        .map_err(api(format!("reading {}", manifest.title())))
}
