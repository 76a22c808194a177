//! `ambit check`: a row per check, and why it failed. [`conclude`] decides, and is pure.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use ambit_core::enrolment::Labels;
use clap::Args;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde_json::Value;

use crate::cluster::{Access, NAME, ZTUNNEL};
use crate::error::Error;
use crate::facts::{self, Facts};
use crate::manifests;
use crate::membership::{Standing, standing};
use crate::output::outln;
use crate::rollout::{self, obstacles};
use crate::version::{self, Server, versions};

/// The oldest supported minor version of Kubernetes: the first with native sidecars.
const OLDEST_MINOR: u32 = 30;
/// The condition that says whether the node daemons enforce an object.
const ACCEPTED: &str = "ambit.dev/ZtunnelAccepted";

#[derive(Debug, Args)]
pub(crate) struct Options {}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    name: &'static str,
    /// What is printed if it passes.
    detail: String,
    /// Why it fails; empty if it passes.
    problems: Vec<String>,
}

pub(crate) async fn run(access: &Access, _options: &Options) -> Result<ExitCode, Error> {
    let rows = Box::pin(run_checks(access)).await;
    for row in &rows {
        outln!("{}", render(row).trim_end())?;
    }
    let failed = rows.iter().filter(|row| !row.problems.is_empty()).count();
    if failed == 0 {
        outln!("all checks passed")?;
        return Ok(ExitCode::SUCCESS);
    }
    outln!("{failed} of {} checks failed", rows.len())?;
    Ok(ExitCode::FAILURE)
}

/// Every row, up to the first that needs an answer the cluster does not give.
async fn run_checks(access: &Access) -> Vec<Row> {
    let failed = |name, error: &Error| Row {
        name,
        detail: String::new(),
        problems: vec![ambit_kube::error::chain(error)],
    };
    let api = "API server";
    let client = match access.connect().await {
        Ok(client) => client,
        Err(error) => return vec![failed(api, &error)],
    };
    let server = match version::server(&client).await {
        Ok(server) => server,
        Err(error) => return vec![failed(api, &error)],
    };
    let reached = Row { name: api, detail: "answers".to_owned(), problems: Vec::new() };
    match Box::pin(facts::gather(&client, &access.ambit_namespace)).await {
        Ok(facts) => {
            std::iter::once(reached).chain(conclude(&facts, &server, &access.ambit_namespace)).collect()
        }
        Err(error) => vec![reached, failed("cluster", &error)],
    }
}

fn render(row: &Row) -> String {
    if row.problems.is_empty() {
        return format!("ok      {}: {}\n", row.name, row.detail);
    }
    let problems: Vec<String> = row.problems.iter().map(|problem| format!("          {problem}")).collect();
    format!("failed  {}\n{}\n", row.name, problems.join("\n"))
}

/// All rows that follow from what was read.
fn conclude(facts: &Facts, server: &Server, system: &str) -> Vec<Row> {
    vec![
        kubernetes(server),
        definitions(facts),
        controller(facts, system),
        ztunnel(facts, system),
        same_version(&facts.running.pods),
        pods(facts, system),
        links(&facts.links),
        objects(&facts.objects),
    ]
}

fn kubernetes(server: &Server) -> Row {
    let old = format!("{}: Ambit needs 1.{OLDEST_MINOR} or later", server.text);
    let problems = if server.minor < OLDEST_MINOR { vec![old] } else { Vec::new() };
    Row { name: "Kubernetes version", detail: server.text.clone(), problems }
}

fn definitions(facts: &Facts) -> Row {
    let problem = |(ours, found): &(manifests::Manifest, Option<DynamicObject>)| {
        let problem = match found {
            Some(found) => manifests::problem(ours, found)?,
            None => "missing".to_owned(),
        };
        Some(format!("{}: {problem}", ours.name()))
    };
    let problems = facts.definitions.iter().filter_map(problem).collect();
    Row { name: "CRDs", detail: format!("{} established", facts.definitions.len()), problems }
}

fn controller(facts: &Facts, system: &str) -> Row {
    let name = "controller";
    let Some(deployment) = &facts.running.controller else {
        return Row {
            name,
            detail: String::new(),
            problems: vec![not_installed("Deployment ambit-controller", system)],
        };
    };
    let progress = rollout::of_deployment(deployment);
    let scaled_to_zero = deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(0);
    let mut problems = Vec::new();
    if scaled_to_zero {
        problems.push("scaled to 0 replicas: no configuration reaches the nodes".to_owned());
    } else if !progress.done {
        problems.push(progress.text.clone());
        problems
            .extend(obstacles(&of_component(&facts.running.pods, "ambit-controller"), &facts.running.events));
    }
    Row { name, detail: progress.text, problems }
}

fn ztunnel(facts: &Facts, system: &str) -> Row {
    let name = "ztunnel";
    let Some(daemon_set) = &facts.running.ztunnel else {
        return Row {
            name,
            detail: String::new(),
            problems: vec![not_installed("DaemonSet ztunnel", system)],
        };
    };
    let progress = rollout::of_daemon_set(daemon_set);
    let pods = of_component(&facts.running.pods, ZTUNNEL);
    let wanted = daemon_set.status.as_ref().map_or(0, |status| status.desired_number_scheduled);
    let elsewhere = facts.nodes.len().saturating_sub(usize::try_from(wanted).unwrap_or(0));
    let rest = if elsewhere > 0 { format!("; {elsewhere} nodes are not selected") } else { String::new() };
    let mut problems = Vec::new();
    if !progress.done {
        problems.push(progress.text.clone());
        problems.extend(obstacles(&pods, &facts.running.events));
        if elsewhere == 0 {
            problems.extend(nodes_without(&facts.nodes, &pods));
        }
    } else if wanted == 0 {
        problems.push("no node is selected".to_owned());
    }
    Row { name, detail: format!("{}{rest}", progress.text), problems }
}

/// The nodes without a pod.
fn nodes_without(nodes: &[Node], pods: &[Pod]) -> Vec<String> {
    let have: BTreeSet<&str> =
        pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref()).collect();
    let names = nodes.iter().map(kube::ResourceExt::name_any).filter(|name| !have.contains(name.as_str()));
    names.map(|name| format!("node {name} has none")).collect()
}

fn not_installed(object: &str, system: &str) -> String {
    format!("there is no {object} in {system}: run `ambit install` or install the Helm chart")
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
    let problems = match distinct.first() {
        Some(only) if distinct.len() == 1 && *only == ours => Vec::new(),
        None => vec!["no pod of Ambit runs".to_owned()],
        Some(_) => {
            let lines = counts
                .iter()
                .map(|((component, version), count)| format!("{component} {version}: {count} pods"));
            lines.chain([format!("this program {ours}")]).collect()
        }
    };
    Row { name, detail: format!("all {ours}"), problems }
}

/// Running pods whose labels and nodes disagree.
fn pods(facts: &Facts, system: &str) -> Row {
    let labels = |namespace: &str| -> Labels {
        let found = facts.namespaces.iter().find(|it| it.name_any() == namespace);
        found.map(|it| it.labels().clone()).unwrap_or_default()
    };
    let (mut captured, mut problems) = (0, Vec::new());
    for pod in &facts.pods {
        let namespace = pod.namespace().unwrap_or_default();
        let name = format!("{namespace}/{}", pod.name_any());
        match standing(pod, &labels(&namespace), system) {
            Some(Standing::Captured) => captured += 1,
            Some(Standing::NotCaptured(reason)) => {
                problems.push(format!(
                    "{name}: {reason} (if that is intended, label it istio.io/dataplane-mode=none)"
                ));
            }
            Some(Standing::Awaited) => {
                problems.push(format!("{name}: labelled, but its node has not enrolled it"));
            }
            Some(Standing::Leaving) => {
                problems.push(format!("{name}: not labelled, but its node has not released it"));
            }
            Some(Standing::Outside) | None => {}
        }
    }
    Row { name: "pods", detail: format!("{captured} are in the mesh, as labelled"), problems }
}

/// What kinds of links the nodes' pods have. An unknown one is no fault: its connections take the tunnel.
fn links(nodes: &[(String, Result<Value, String>)]) -> Row {
    let (mut counts, mut unknown, mut problems) = (BTreeMap::<String, usize>::new(), Vec::new(), Vec::new());
    for (node, answer) in nodes {
        let links = match answer {
            Ok(links) => links.as_array().into_iter().flatten(),
            Err(error) => {
                problems.push(format!("node {node}: {error}"));
                continue;
            }
        };
        for link in links {
            let word = |name: &str| link[name].as_str().unwrap_or_default();
            *counts.entry(word("kind").to_owned()).or_default() += 1;
            if word("kind") == "unknown" {
                unknown.push(format!("{} on {node}: {}", word("uid"), word("reason")));
            }
        }
    }
    let counts = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ");
    let first = match unknown.as_slice() {
        [] => String::new(),
        [only] => format!("; tunnel only: {only}"),
        [first, rest @ ..] => format!("; tunnel only: {first}; and {} more", rest.len()),
    };
    Row {
        name: "links",
        detail: format!("{}{first}", if counts.is_empty() { "none" } else { &counts }),
        problems,
    }
}

fn objects(objects: &[(String, DynamicObject)]) -> Row {
    let line = |(kind, object): &(String, DynamicObject)| {
        let problem = not_accepted(object)?;
        Some(format!("{kind} {}/{}: {problem}", object.namespace().unwrap_or_default(), object.name_any()))
    };
    let problems = objects.iter().filter_map(line).collect();
    Row { name: "objects", detail: format!("{} are in force", objects.len()), problems }
}

/// Why an object is not in force as it is written.
fn not_accepted(object: &DynamicObject) -> Option<String> {
    let conditions = object.data["status"]["conditions"].as_array().into_iter().flatten();
    let Some(ours) = conditions.into_iter().find(|condition| condition["type"] == ACCEPTED) else {
        return Some("not yet processed by a controller".to_owned());
    };
    if ours["status"] != "True" {
        let word = |name: &str| ours[name].as_str().unwrap_or_default().to_owned();
        return Some(format!("{}: {}", word("reason"), word("message")));
    }
    let (seen, now) = (ours["observedGeneration"].as_i64(), object.metadata.generation);
    (seen < now).then(|| "its latest version is not yet processed by a controller".to_owned())
}

#[cfg(test)]
mod tests;
