//! `ambit check`: what is well, and what is not. What the facts mean is decided by [`conclude`], which is pure.

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
        print!("{}", in_words(row));
    }
    let failed = rows.iter().filter(|row| !row.wrong.is_empty()).count();
    if failed == 0 {
        println!("all is well");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{failed} of {} checks failed", rows.len());
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
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::rollout::Running;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn pod(component: &str, node: &str, version: &str, ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        read(json!({
            "metadata": {
                "name": format!("{component}-{node}"), "namespace": "ambit-system",
                "labels": { NAME: component, "app.kubernetes.io/version": version, "istio.io/dataplane-mode": "none" },
            },
            "spec": { "nodeName": node, "containers": [] },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": status, "reason": "ContainersNotReady" }] },
        }))
    }

    fn object(status: &Value) -> (String, DynamicObject) {
        let object = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": { "name": "p", "namespace": "shop", "generation": 2 }, "status": status,
        });
        ("AuthorizationPolicy".to_owned(), read(object))
    }

    fn condition(status: &str, observed: i64) -> Value {
        json!({ "conditions": [
            { "type": "other", "status": "False" },
            { "type": ACCEPTED, "status": status, "reason": "Invalid", "message": "no", "observedGeneration": observed },
        ]})
    }

    /// Two nodes, all well.
    fn well() -> Facts {
        let version = env!("CARGO_PKG_VERSION");
        let mut controller: Value = json!({ "metadata": { "generation": 1 }, "spec": { "replicas": 1, "selector": {}, "template": {} } });
        controller["status"] =
            json!({ "observedGeneration": 1, "availableReplicas": 1, "updatedReplicas": 1 });
        let mut ztunnel: Value =
            json!({ "metadata": { "generation": 1 }, "spec": { "selector": {}, "template": {} } });
        ztunnel["status"] = json!({
            "observedGeneration": 1, "desiredNumberScheduled": 2, "numberAvailable": 2, "updatedNumberScheduled": 2,
            "currentNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 2,
        });
        let definitions = manifests::definitions().unwrap().into_iter().map(|ours| {
            let mut there = ours.object.clone();
            there.data["status"] = json!({ "conditions": [{ "type": "Established", "status": "True" }] });
            (ours, Some(there))
        });
        let shop =
            json!({ "metadata": { "name": "shop", "labels": { "istio.io/dataplane-mode": "ambient" } } });
        let web = json!({
            "metadata": { "name": "web", "namespace": "shop", "annotations": { "ambient.istio.io/redirection": "enabled" } },
            "spec": { "containers": [] }, "status": { "phase": "Running" },
        });
        Facts {
            definitions: definitions.collect(),
            running: Running {
                controller: Some(read(controller)),
                ztunnel: Some(read(ztunnel)),
                pods: vec![
                    pod("ambit-controller", "n1", version, true),
                    pod("ztunnel", "n1", version, true),
                    pod("ztunnel", "n2", version, true),
                ],
                events: Vec::new(),
            },
            nodes: vec![
                read(json!({ "metadata": { "name": "n1" } })),
                read(json!({ "metadata": { "name": "n2" } })),
            ],
            namespaces: vec![read(shop)],
            pods: vec![read(web)],
            objects: vec![object(&condition("True", 2))],
        }
    }

    fn server(minor: u32) -> Server {
        Server { minor, text: format!("v1.{minor}.0") }
    }

    #[test]
    fn all_is_well() {
        for row in conclude(&well(), &server(34), "ambit-system") {
            assert_eq!(row.wrong, Vec::<String>::new(), "{}", row.name);
        }
    }

    #[test]
    fn what_fails_says_why_and_nothing_else_fails() {
        type Break = fn(&mut Facts);
        let rows: [(&str, Break, &str, &[&str]); 10] = [
            (
                "a definition away",
                |it| it.definitions[3].1 = None,
                "definitions",
                &["peerauthentications.security.istio.io: is not there"],
            ),
            (
                "not installed",
                |it| it.running.controller = None,
                "controller",
                &[
                    "there is no Deployment ambit-controller in ambit-system: `ambit install` or the Helm chart puts it there",
                ],
            ),
            (
                "scaled to nothing",
                |it| it.running.controller.as_mut().unwrap().spec.as_mut().unwrap().replicas = Some(0),
                "controller",
                &["0 replicas are asked for: nothing new reaches the nodes"],
            ),
            (
                "a controller not ready",
                |it| {
                    it.running.controller.as_mut().unwrap().status.as_mut().unwrap().available_replicas =
                        None;
                    it.running.pods[0] = pod("ambit-controller", "n1", env!("CARGO_PKG_VERSION"), false);
                },
                "controller",
                &["0 of 1 ready", "pod ambit-controller-n1 on n1: ContainersNotReady"],
            ),
            (
                "a node without ztunnel",
                |it| {
                    it.running.ztunnel.as_mut().unwrap().status.as_mut().unwrap().number_available = Some(1);
                    it.running.pods.pop();
                },
                "ztunnel",
                &["1 of 2 ready", "node n2 has none"],
            ),
            (
                "an older pod",
                |it| it.running.pods[2] = pod("ztunnel", "n2", "0.0.9", true),
                "versions",
                &[
                    "ambit-controller 0.1.0: 1 pods",
                    "ztunnel 0.0.9: 1 pods",
                    "ztunnel 0.1.0: 1 pods",
                    "this program 0.1.0",
                ],
            ),
            (
                "a pod not enrolled",
                |it| it.pods[0].annotations_mut().clear(),
                "pods",
                &["shop/web: labelled, and its node has not enrolled it"],
            ),
            (
                "a refused object",
                |it| it.objects[0] = object(&condition("False", 2)),
                "objects",
                &["AuthorizationPolicy shop/p: Invalid: no"],
            ),
            (
                "its last version",
                |it| it.objects[0] = object(&condition("True", 1)),
                "objects",
                &["AuthorizationPolicy shop/p: no controller has looked at its last version yet"],
            ),
            (
                "one nobody looked at",
                |it| it.objects[0] = object(&json!({})),
                "objects",
                &["AuthorizationPolicy shop/p: no controller has looked at it yet"],
            ),
        ];
        for (name, damage, row, expected) in rows {
            let mut facts = well();
            damage(&mut facts);
            let failed: Vec<Row> = conclude(&facts, &server(34), "ambit-system")
                .into_iter()
                .filter(|row| !row.wrong.is_empty())
                .collect();
            assert_eq!(failed.len(), 1, "{name}: {failed:?}");
            assert_eq!(
                (failed[0].name, failed[0].wrong.as_slice()),
                (row, expected.map_to_strings().as_slice()),
                "{name}"
            );
        }
        assert_eq!(kubernetes(&server(28)).wrong, ["v1.28.0: Ambit needs 1.29 or later"]);
    }

    trait Strings {
        fn map_to_strings(&self) -> Vec<String>;
    }

    impl Strings for &[&str] {
        fn map_to_strings(&self) -> Vec<String> {
            self.iter().map(|text| (*text).to_owned()).collect()
        }
    }

    #[test]
    fn rows_in_words() {
        let row = |wrong: &[&str]| Row {
            name: "pods",
            detail: "3 are in the mesh".to_owned(),
            wrong: wrong.map_to_strings(),
        };
        assert_eq!(in_words(&row(&[])), "ok      pods: 3 are in the mesh\n");
        assert_eq!(in_words(&row(&["a", "b"])), "failed  pods\n          a\n          b\n");
    }
}
