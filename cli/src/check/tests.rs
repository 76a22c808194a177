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
            "labels": { NAME: component, "app.kubernetes.io/version": version,
                "istio.io/dataplane-mode": "none" },
        },
        "spec": { "nodeName": node, "containers": [] },
        "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": status,
            "reason": "ContainersNotReady" }] },
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
        { "type": ACCEPTED, "status": status, "reason": "Invalid", "message": "no",
            "observedGeneration": observed },
    ]})
}

/// Two nodes, and every check passes.
fn healthy() -> Facts {
    let version = env!("CARGO_PKG_VERSION");
    let mut controller: Value =
        json!({ "metadata": { "generation": 1 }, "spec": { "replicas": 1, "selector": {}, "template": {} } });
    controller["status"] = json!({ "observedGeneration": 1, "availableReplicas": 1, "updatedReplicas": 1 });
    let mut ztunnel: Value =
        json!({ "metadata": { "generation": 1 }, "spec": { "selector": {}, "template": {} } });
    ztunnel["status"] = json!({
        "observedGeneration": 1, "desiredNumberScheduled": 2, "numberAvailable": 2,
            "updatedNumberScheduled": 2,
        "currentNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 2,
    });
    let definitions = manifests::definitions().unwrap().into_iter().map(|ours| {
        let mut found = ours.object.clone();
        found.data["status"] = json!({ "conditions": [{ "type": "Established", "status": "True" }] });
        (ours, Some(found))
    });
    let shop = json!({ "metadata": { "name": "shop", "labels": { "istio.io/dataplane-mode": "ambient" } } });
    let web = json!({
        "metadata": { "name": "web", "namespace": "shop",
            "annotations": { "ambient.istio.io/redirection": "enabled" } },
        "spec": { "serviceAccountName": "web", "containers": [] }, "status": { "phase": "Running" },
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
        links: vec![("n1".to_owned(), Ok(json!([{ "uid": "web", "kind": "shared" }])))],
    }
}

fn server(minor: u32) -> Server {
    Server { minor, text: format!("v1.{minor}.0") }
}

#[test]
fn a_healthy_cluster_passes_every_check() {
    for row in conclude(&healthy(), &server(34), "ambit-system") {
        assert_eq!(row.problems, Vec::<String>::new(), "{}", row.name);
    }
}

#[test]
fn links_are_counted_by_kind_and_unknown_ones_named() {
    let link = |uid: &str, kind: &str| json!({ "uid": uid, "kind": kind, "reason": "two interfaces" });
    let of = |links: Value| links_row(&[("n1".to_owned(), Ok(links))]);
    let rows = [
        ("no pods", json!([]), "none"),
        (
            "known",
            json!([link("a", "shared"), link("b", "isolated"), link("c", "shared")]),
            "1 isolated, 2 shared",
        ),
        (
            "one unknown",
            json!([link("a", "shared"), link("b", "unknown")]),
            "1 shared, 1 unknown; tunnel only: b on n1: two interfaces",
        ),
        (
            "two unknown",
            json!([link("a", "unknown"), link("b", "unknown")]),
            "2 unknown; tunnel only: a on n1: two interfaces; and 1 more",
        ),
    ];
    for (name, answer, expected) in rows {
        assert_eq!(of(answer), expected, "{name}");
    }
}

fn links_row(links: &[(String, Result<Value, String>)]) -> String {
    let row = super::links(links);
    assert_eq!(row.problems, Vec::<String>::new());
    row.detail
}

#[test]
fn each_failure_fails_one_check_and_says_why() {
    type Break = fn(&mut Facts);
    let rows: [(&str, Break, &str, &[&str]); 11] = [
        (
            "a daemon that does not answer",
            |it| it.links.push(("n2".to_owned(), Err("no answer".to_owned()))),
            "links",
            &["node n2: no answer"],
        ),
        (
            "a missing CRD",
            |it| it.definitions[3].1 = None,
            "CRDs",
            &["peerauthentications.security.istio.io: missing"],
        ),
        (
            "not installed",
            |it| it.running.controller = None,
            "controller",
            &["there is no Deployment ambit-controller in ambit-system: run `ambit install` or install the \
               Helm chart"],
        ),
        (
            "scaled to zero",
            |it| it.running.controller.as_mut().unwrap().spec.as_mut().unwrap().replicas = Some(0),
            "controller",
            &["scaled to 0 replicas: no configuration reaches the nodes"],
        ),
        (
            "a controller not ready",
            |it| {
                it.running.controller.as_mut().unwrap().status.as_mut().unwrap().available_replicas = None;
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
            &["shop/web: labelled, but its node has not enrolled it"],
        ),
        (
            "a refused object",
            |it| it.objects[0] = object(&condition("False", 2)),
            "objects",
            &["AuthorizationPolicy shop/p: Invalid: no"],
        ),
        (
            "its latest version",
            |it| it.objects[0] = object(&condition("True", 1)),
            "objects",
            &["AuthorizationPolicy shop/p: its latest version is not yet processed by a controller"],
        ),
        (
            "one without a condition",
            |it| it.objects[0] = object(&json!({})),
            "objects",
            &["AuthorizationPolicy shop/p: not yet processed by a controller"],
        ),
    ];
    for (name, damage, row, expected) in rows {
        let mut facts = healthy();
        damage(&mut facts);
        let failed: Vec<Row> = conclude(&facts, &server(34), "ambit-system")
            .into_iter()
            .filter(|row| !row.problems.is_empty())
            .collect();
        assert_eq!(failed.len(), 1, "{name}: {failed:?}");
        assert_eq!(
            (failed[0].name, failed[0].problems.as_slice()),
            (row, expected.map_to_strings().as_slice()),
            "{name}"
        );
    }
    assert_eq!(kubernetes(&server(29)).problems, ["v1.29.0: Ambit needs 1.30 or later"]);
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
fn rendered_rows() {
    let row = |problems: &[&str]| Row {
        name: "pods",
        detail: "3 are in the mesh".to_owned(),
        problems: problems.map_to_strings(),
    };
    assert_eq!(render(&row(&[])), "ok      pods: 3 are in the mesh\n");
    assert_eq!(render(&row(&["a", "b"])), "failed  pods\n          a\n          b\n");
}
