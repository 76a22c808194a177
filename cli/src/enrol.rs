//! `ambit enrol` and `ambit release`: label the namespace, then wait for the nodes to follow.

use std::time::Duration;

use ambit_core::enrolment::{DATAPLANE_MODE, Labels};
use clap::Args;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use crate::cluster::{Access, label_namespace};
use crate::error::{Error, api};
use crate::membership::{Standing, standing};
use crate::output::outln;
use crate::wait::{self, Look};

/// The label's value that Istio's tools know too.
const AMBIENT: &str = "ambient";

/// What to enrol or release.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The namespace.
    namespace: String,
    /// How long to wait for the running pods.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

pub(crate) async fn enrol(access: &Access, options: &Options) -> Result<(), Error> {
    if options.namespace == access.ambit_namespace {
        return Err(Error::Refused("Ambit's own pods are never in the mesh".to_owned()));
    }
    change(access, options, Some(AMBIENT)).await
}

pub(crate) async fn release(access: &Access, options: &Options) -> Result<(), Error> {
    change(access, options, None).await
}

async fn change(access: &Access, options: &Options, label: Option<&str>) -> Result<(), Error> {
    let client = access.connect().await?;
    label_namespace(&client, &options.namespace, &json!({ DATAPLANE_MODE: label })).await?;
    let goal = if label.is_some() { "enrol the pods" } else { "release the pods" };
    let mut standings = Vec::new();
    wait::until(goal, Duration::from_secs(options.timeout), async || {
        standings = standings_of(&client, &options.namespace, &access.ambit_namespace).await?;
        Ok(Look::for_missing(missing(&standings)))
    })
    .await?;
    for line in summary(&options.namespace, &standings) {
        outln!("{line}")?;
    }
    Ok(())
}

/// Where each running pod of the namespace stands.
async fn standings_of(
    client: &Client,
    namespace: &str,
    system: &str,
) -> Result<Vec<(String, Standing)>, Error> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let labels: Labels = namespaces
        .get_metadata(namespace)
        .await
        .map_err(api(format!("read namespace {namespace}")))?
        .metadata
        .labels
        .unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods =
        pods.list(&ListParams::default()).await.map_err(api(format!("list the pods of {namespace}")))?;
    let stand = |pod: &Pod| Some((pod.name_any(), standing(pod, &labels, system)?));
    Ok(pods.items.iter().filter_map(stand).collect())
}

/// The pods that the nodes have not yet enrolled or released as the labels ask.
fn missing(standings: &[(String, Standing)]) -> Vec<String> {
    let line = |(name, standing): &(String, Standing)| match standing {
        Standing::Awaited => Some(format!("pod {name} is not in the mesh yet")),
        Standing::Leaving => Some(format!("pod {name} is still in the mesh")),
        Standing::Captured | Standing::Outside | Standing::NotCaptured(_) => None,
    };
    standings.iter().filter_map(line).collect()
}

fn summary(namespace: &str, standings: &[(String, Standing)]) -> Vec<String> {
    let captured = standings.iter().filter(|(_, standing)| *standing == Standing::Captured).count();
    let first = format!("{namespace}: {captured} of {} running pods are in the mesh", standings.len());
    let reason = |(name, standing): &(String, Standing)| match standing {
        Standing::NotCaptured(reason) => Some(format!("  pod {name} is not: {reason}")),
        _ => None,
    };
    std::iter::once(first).chain(standings.iter().filter_map(reason)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_pods_and_summary() {
        let all = [
            ("a", Standing::Captured),
            ("b", Standing::Awaited),
            ("c", Standing::Leaving),
            ("d", Standing::Outside),
            ("e", Standing::NotCaptured("host network".to_owned())),
        ];
        let all = all.map(|(name, standing)| (name.to_owned(), standing));
        assert_eq!(missing(&all), ["pod b is not in the mesh yet", "pod c is still in the mesh"]);
        assert_eq!(
            summary("shop", &all),
            ["shop: 1 of 5 running pods are in the mesh", "  pod e is not: host network"]
        );
        assert_eq!(missing(&[]), Vec::<String>::new(), "no running pods: nothing to wait for");
    }
}
