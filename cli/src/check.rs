//! `ambit check`: what is well, and what is not. What the facts mean is decided by [`conclude`], which is
//! pure.

use std::collections::BTreeSet;
use std::process::ExitCode;

use ambit_core::enrolment::Labels;
use clap::Args;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use kube::api::DynamicObject;

use crate::cluster::{Access, ZTUNNEL};
use crate::error::Error;
use crate::facts::{self, Facts};
use crate::manifests;
use crate::membership::{Standing, standing};
use crate::rollout::{self, obstacles};
use crate::version::{self, Server, versions};

/// The oldest Kubernetes that Ambit runs on: native sidecars.
const OLDEST: u32 = 29;
/// Whether the node daemons enforce an object.
const ACCEPTED: &str = "ambit.dev/ZtunnelAccepted";
const NAME: &str = "app.kubernetes.io/name";

#[derive(Debug, Args)]
pub(crate) struct Options {}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    name: &'static str,
    /// What there is to say where it is well.
    detail: String,
    /// Why it is not.
    wrong: Vec<String>,
}

pub(crate) async fn run(access: &Access, _options: &Options) -> Result<ExitCode, Error> {
    let rows = Box::pin(look(access)).await;
    for row in &rows {
        say!("{}", in_words(row).trim_end())?;
    }
    let failed = rows.iter().filter(|row| !row.wrong.is_empty()).count();
    if failed == 0 {
        say!("all is well")?;
        return Ok(ExitCode::SUCCESS);
    }
    say!("{failed} of {} checks failed", rows.len())?;
    Ok(ExitCode::FAILURE)
}

/// Every row; no further than the cluster answers.
async fn look(access: &Access) -> Vec<Row> {
    let failed = |name, error: &Error| Row { name, detail: String::new(), wrong: vec![crate::chain(error)] };
    let api = "API server";
    let client = match access.connect().await {
        Ok(client) => client,
        Err(error) => return vec![failed(api, &error)],
    };
    let server = match version::server(&client).await {
        Ok(server) => server,
        Err(error) => return vec![failed(api, &error)],
    };
    let reached = Row { name: api, detail: "answers".to_owned(), wrong: Vec::new() };
    match Box::pin(facts::gather(&client, &access.ambit_namespace)).await {
        Ok(facts) => {
            std::iter::once(reached).chain(conclude(&facts, &server, &access.ambit_namespace)).collect()
        }
        Err(error) => vec![reached, failed("reading the cluster", &error)],
    }
}

fn in_words(row: &Row) -> String {
    if row.wrong.is_empty() {
        return format!("ok      {}: {}\n", row.name, row.detail);
    }
    let wrong: Vec<String> = row.wrong.iter().map(|why| format!("          {why}")).collect();
    format!("failed  {}\n{}\n", row.name, wrong.join("\n"))
}

/// What the facts mean.
fn conclude(facts: &Facts, server: &Server, system: &str) -> Vec<Row> {
    vec![
        kubernetes(server),
        definitions(facts),
        controller(facts, system),
        ztunnel(facts, system),
        same_version(&facts.running.pods),
        pods(facts, system),
        objects(&facts.objects),
    ]
}

fn kubernetes(server: &Server) -> Row {
    let old = format!("{}: Ambit needs 1.{OLDEST} or later", server.text);
    let wrong = if server.minor < OLDEST { vec![old] } else { Vec::new() };
    Row { name: "Kubernetes version", detail: server.text.clone(), wrong }
}

fn definitions(facts: &Facts) -> Row {
    let trouble = |(ours, there): &(manifests::Manifest, Option<DynamicObject>)| {
        let trouble = match there {
            Some(there) => manifests::trouble(ours, there)?,
            None => "is not there".to_owned(),
        };
        Some(format!("{}: {trouble}", ours.name()))
    };
    let wrong = facts.definitions.iter().filter_map(trouble).collect();
    Row { name: "definitions", detail: format!("{} are in use", facts.definitions.len()), wrong }
}

fn controller(facts: &Facts, system: &str) -> Row {
    let name = "controller";
    let Some(deployment) = &facts.running.controller else {
        return Row {
            name,
            detail: String::new(),
            wrong: vec![not_installed("Deployment ambit-controller", system)],
        };
    };
    let progress = rollout::of_deployment(deployment);
    let none_wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(0);
    let mut wrong = Vec::new();
    if none_wanted {
        wrong.push("0 replicas are asked for: nothing new reaches the nodes".to_owned());
    } else if !progress.done {
        wrong.push(progress.text.clone());
        wrong
            .extend(obstacles(&of_component(&facts.running.pods, "ambit-controller"), &facts.running.events));
    }
    Row { name, detail: progress.text, wrong }
}

fn ztunnel(facts: &Facts, system: &str) -> Row {
    let name = "ztunnel";
    let Some(daemon_set) = &facts.running.ztunnel else {
        return Row { name, detail: String::new(), wrong: vec![not_installed("DaemonSet ztunnel", system)] };
    };
    let progress = rollout::of_daemon_set(daemon_set);
    let pods = of_component(&facts.running.pods, ZTUNNEL);
    let wanted = daemon_set.status.as_ref().map_or(0, |status| status.desired_number_scheduled);
    let elsewhere = facts.nodes.len().saturating_sub(usize::try_from(wanted).unwrap_or(0));
    let rest = if elsewhere > 0 { format!("; {elsewhere} nodes are not selected") } else { String::new() };
    let mut wrong = Vec::new();
    if !progress.done {
        wrong.push(progress.text.clone());
        wrong.extend(obstacles(&pods, &facts.running.events));
        if elsewhere == 0 {
            wrong.extend(without(&facts.nodes, &pods));
        }
    } else if wanted == 0 {
        wrong.push("no node is selected".to_owned());
    }
    Row { name, detail: format!("{}{rest}", progress.text), wrong }
}

/// The nodes that have no pod.
fn without(nodes: &[Node], pods: &[Pod]) -> Vec<String> {
    let have: BTreeSet<&str> =
        pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref()).collect();
    let names = nodes.iter().map(kube::ResourceExt::name_any).filter(|name| !have.contains(name.as_str()));
    names.map(|name| format!("node {name} has none")).collect()
}

fn not_installed(what: &str, system: &str) -> String {
    format!("there is no {what} in {system}: `ambit install` or the Helm chart puts it there")
}

fn of_component(pods: &[Pod], name: &str) -> Vec<Pod> {
    let is = |pod: &&Pod| pod.labels().get(NAME).is_some_and(|label| label == name);
    pods.iter().filter(is).cloned().collect()
}

fn same_version(pods: &[Pod]) -> Row {
    let name = "versions";
    let ours = env!("CARGO_PKG_VERSION");
    let counts = versions(pods);
    let distinct: BTreeSet<&str> = counts.keys().map(|(_, version)| version.as_str()).collect();
    let wrong = match distinct.first() {
        Some(only) if distinct.len() == 1 && *only == ours => Vec::new(),
        None => vec!["nothing runs".to_owned()],
        Some(_) => {
            let lines = counts
                .iter()
                .map(|((component, version), count)| format!("{component} {version}: {count} pods"));
            lines.chain([format!("this program {ours}")]).collect()
        }
    };
    Row { name, detail: format!("all {ours}"), wrong }
}

/// Labelled pods that run and are not captured.
fn pods(facts: &Facts, system: &str) -> Row {
    let labels = |namespace: &str| -> Labels {
        let found = facts.namespaces.iter().find(|it| it.name_any() == namespace);
        found.map(|it| it.labels().clone()).unwrap_or_default()
    };
    let (mut captured, mut wrong) = (0, Vec::new());
    for pod in &facts.pods {
        let namespace = pod.namespace().unwrap_or_default();
        let name = format!("{namespace}/{}", pod.name_any());
        match standing(pod, &labels(&namespace), system) {
            Some(Standing::Captured) => captured += 1,
            Some(Standing::NotCaptured(why)) => {
                wrong
                    .push(format!("{name}: {why} (if that is meant, label it istio.io/dataplane-mode=none)"));
            }
            Some(Standing::Awaited) => {
                wrong.push(format!("{name}: labelled, and its node has not enrolled it"));
            }
            Some(Standing::Leaving) => {
                wrong.push(format!("{name}: not labelled, and its node has not released it"));
            }
            Some(Standing::Outside) | None => {}
        }
    }
    Row { name: "pods", detail: format!("{captured} are in the mesh, all that should be"), wrong }
}

fn objects(objects: &[(String, DynamicObject)]) -> Row {
    let line = |(kind, object): &(String, DynamicObject)| {
        let trouble = not_accepted(object)?;
        Some(format!("{kind} {}/{}: {trouble}", object.namespace().unwrap_or_default(), object.name_any()))
    };
    let wrong = objects.iter().filter_map(line).collect();
    Row { name: "objects", detail: format!("{} are in force", objects.len()), wrong }
}

/// Why an object is not in force as it is written.
fn not_accepted(object: &DynamicObject) -> Option<String> {
    let conditions = object.data["status"]["conditions"].as_array().into_iter().flatten();
    let Some(ours) = conditions.into_iter().find(|condition| condition["type"] == ACCEPTED) else {
        return Some("no controller has looked at it yet".to_owned());
    };
    if ours["status"] != "True" {
        let word = |name: &str| ours[name].as_str().unwrap_or_default().to_owned();
        return Some(format!("{}: {}", word("reason"), word("message")));
    }
    let (seen, now) = (ours["observedGeneration"].as_i64(), object.metadata.generation);
    (seen < now).then(|| "no controller has looked at its last version yet".to_owned())
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
