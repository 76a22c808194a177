//! `ambit ztunnel`: what the node daemons know and do.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use serde_json::Value;

use crate::cluster::{Access, ZTUNNEL_PODS};
use crate::error::{Error, api};
use crate::rollout::is_ready;
use crate::views::{self, View};
use crate::{facts, forward};

/// What to show, and of whom.
#[derive(Debug, Args)]
pub(crate) struct Options {
    view: View,
    /// The daemon of one node; else of all.
    #[arg(long, conflicts_with_all = ["pod", "address"])]
    node: Option<String>,
    /// The daemon of a pod's node, and in tables only what concerns the pod: NAMESPACE/NAME.
    #[arg(long, conflicts_with = "address")]
    pod: Option<String>,
    /// A daemon's admin interface, where there is no Kubernetes: 127.0.0.1:15000.
    #[arg(long)]
    address: Option<SocketAddr>,
    /// Tables for people, or the daemon's own JSON (of several daemons: an object by node).
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

pub(crate) async fn run(access: &Access, options: &Options) -> Result<(), Error> {
    let path = options.view.path();
    let one = options.address.is_some() || options.node.is_some() || options.pod.is_some();
    let mut answers = Vec::new();
    if let Some(address) = options.address {
        answers.push((address.to_string(), forward::at(address, path).await?));
    } else {
        let client = access.connect().await?;
        let node = match &options.pod {
            Some(pod) => Some(node_of(&client, pod).await?),
            None => options.node.clone(),
        };
        let pods = facts::pods(&client, &access.ambit_namespace, ZTUNNEL_PODS).await?;
        for (node, pod) in choose(&pods, node.as_deref())? {
            answers.push((node, forward::in_pod(&client, pod, path).await?));
        }
    }
    match options.output {
        Format::Table => {
            say!("{}", views::tables(options.view, &answers, options.pod.as_deref()).trim_end())?;
        }
        Format::Json => say!("{:#}", json(answers, one))?,
    }
    Ok(())
}

/// The node that a pod runs on.
async fn node_of(client: &Client, pod: &str) -> Result<String, Error> {
    let Some((namespace, name)) = pod.split_once('/') else {
        return Err(Error::Refused(format!("{pod}: a pod is named NAMESPACE/NAME")))?;
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = pods.get(name).await.map_err(api(format!("reading the pod {pod}")))?;
    let node = found.spec.and_then(|spec| spec.node_name);
    node.ok_or_else(|| Error::Refused(format!("pod {pod} is on no node yet")))
}

/// The pod to ask on each node, by node: the one that is ready, while there are two; of one node if it is
/// named.
fn choose<'a>(pods: &'a [Pod], node: Option<&str>) -> Result<Vec<(String, &'a Pod)>, Error> {
    let mut chosen = std::collections::BTreeMap::<String, &Pod>::new();
    for pod in pods {
        let running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        let Some(place) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { continue };
        if running && node.is_none_or(|node| node == place) {
            let best = chosen.entry(place).or_insert(pod);
            if !is_ready(best) {
                *best = pod;
            }
        }
    }
    if chosen.is_empty() {
        let place = node.map(|node| format!(" on {node}")).unwrap_or_default();
        return Err(Error::Refused(format!("no ztunnel runs{place}: `ambit check` says more")));
    }
    Ok(chosen.into_iter().collect())
}

/// One daemon's answer as it is; several by node.
fn json(answers: Vec<(String, Value)>, one: bool) -> Value {
    if one {
        return answers.into_iter().next().map_or(Value::Null, |(_, answer)| answer);
    }
    Value::Object(answers.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt as _;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, phase: &str, ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        let pod = json!({
            "metadata": { "name": name }, "spec": { "nodeName": node, "containers": [] },
            "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": status }] },
        });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn whom_to_ask() {
        let all = [
            pod("starts", "n1", "Pending", false),
            pod("next", "n1", "Running", false),
            pod("serves", "n1", "Running", true),
            pod("alone", "n2", "Running", false),
        ];
        let rows: [(&str, Option<&str>, &[&str]); 4] = [
            ("all", None, &["serves", "alone"]),
            ("one of two", Some("n1"), &["serves"]),
            ("not ready, and there is no other", Some("n2"), &["alone"]),
            ("none", Some("n3"), &[]),
        ];
        for (name, node, expected) in rows {
            let chosen = choose(&all, node).unwrap_or_default();
            assert_eq!(chosen.iter().map(|(_, pod)| pod.name_any()).collect::<Vec<_>>(), expected, "{name}");
        }
        let error = choose(&all, Some("n3")).unwrap_err().to_string();
        assert_eq!(error, "no ztunnel runs on n3: `ambit check` says more");
    }

    #[test]
    fn answers_as_they_are() {
        let answers = || vec![("n1".to_owned(), json!([1])), ("n2".to_owned(), json!([]))];
        assert_eq!(json(answers(), true), json!([1]));
        assert_eq!(json(answers(), false), json!({ "n1": [1], "n2": [] }));
    }
}
