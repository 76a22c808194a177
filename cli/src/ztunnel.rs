//! `ambit ztunnel`: the state and the connections of the node daemons.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use serde_json::Value;

use crate::cluster::{Access, ZTUNNEL_PODS};
use crate::error::{Error, api};
use crate::output::outln;
use crate::rollout::is_ready;
use crate::views::{self, View};
use crate::{facts, forward};

/// What to show, and of which daemons.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to show.
    view: View,
    /// Only the daemon of this node.
    #[arg(long, conflicts_with_all = ["pod", "address"])]
    node: Option<String>,
    /// Only the daemon of this pod's node, and in tables only what concerns the pod: NAMESPACE/NAME.
    #[arg(long, conflicts_with = "address")]
    pod: Option<String>,
    /// The daemon with this admin address, without Kubernetes: 127.0.0.1:15000.
    #[arg(long)]
    address: Option<SocketAddr>,
    /// Tables, or the daemon's own JSON (of several daemons: an object by node).
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
        answers.push((address.to_string(), forward::query_address(address, path).await?));
    } else {
        let client = access.connect().await?;
        let node = match &options.pod {
            Some(pod) => Some(node_of(&client, pod).await?),
            None => options.node.clone(),
        };
        let pods = facts::pods(&client, &access.ambit_namespace, ZTUNNEL_PODS).await?;
        for (node, pod) in choose(&pods, node.as_deref())? {
            answers.push((node, forward::query_pod(&client, pod, path).await?));
        }
    }
    match options.output {
        Format::Table => {
            outln!("{}", views::tables(options.view, &answers, options.pod.as_deref()).trim_end())?;
        }
        Format::Json => outln!("{:#}", json(answers, one))?,
    }
    Ok(())
}

/// The node that a pod runs on.
async fn node_of(client: &Client, pod: &str) -> Result<String, Error> {
    let Some((namespace, name)) = pod.split_once('/') else {
        return Err(Error::Refused(format!("--pod {pod}: not NAMESPACE/NAME")))?;
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = pods.get(name).await.map_err(api(format!("read pod {pod}")))?;
    let node = found.spec.and_then(|spec| spec.node_name);
    node.ok_or_else(|| Error::Refused(format!("pod {pod} is not scheduled yet")))
}

/// The pod to query on each node, by node: the ready one, while there are two. Only of `node`, if it is
/// given.
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
        return Err(Error::Refused(format!("no ztunnel runs{place}: see `ambit check`")));
    }
    Ok(chosen.into_iter().collect())
}

/// One daemon's answer unchanged; several as an object by node.
fn json(answers: Vec<(String, Value)>, one: bool) -> Value {
    if one {
        return answers.into_iter().next().map_or(Value::Null, |(_, answer)| answer);
    }
    Value::Object(answers.into_iter().collect())
}

#[cfg(test)]
mod tests;
