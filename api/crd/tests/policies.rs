//! Policies from their text to the decision: YAML → objects → derivation → mesh → `authorize`, row by row as
//! `policies.txt` has them.

use std::net::{IpAddr, SocketAddr};

use ambit_core::derive::{ObjectEvent, Settings, World};
use ambit_core::mesh::Mesh;
use ambit_core::model::Identity;
use ambit_core::policy::{Decision, Request, authorize};
use ambit_core::testing::uid;
use ambit_crd::{Outcome, parse};

const ROWS: &str = include_str!("policies.txt");

const PEERS: [(&str, Option<&str>, &str); 8] = [
    ("web", Some("spiffe://cluster.local/ns/shop/sa/web"), "10.1.0.7"),
    ("api", Some("spiffe://cluster.local/ns/shop/sa/api"), "10.2.0.9"),
    ("teller", Some("spiffe://cluster.local/ns/bank/sa/teller"), "10.3.0.1"),
    ("six", Some("spiffe://cluster.local/ns/shop/sa/web"), "fd00:7::7"),
    ("old", Some("spiffe://old.example/ns/shop/sa/web"), "10.1.0.8"),
    ("alien", Some("spiffe://evil.example/ns/shop/sa/web"), "10.1.0.9"),
    ("plain", None, "10.1.0.7"),
    ("far", None, "192.168.1.1"),
];

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {nodeName: node-a, containers: []}
status: {phase: Running, podIP: 10.1.0.1, conditions: [{type: Ready, status: 'True'}]}
";

/// One row: its name, the objects it adds, and its questions as lines.
struct Row<'a> {
    name: &'a str,
    objects: Vec<String>,
    questions: Vec<(char, &'a str)>,
}

fn rows() -> Vec<Row<'static>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for line in ROWS.lines().filter(|line| !line.is_empty() && !line.starts_with("//")) {
        let (mark, rest) = line.split_once(' ').expect("a mark and what it is about");
        if mark == "#" {
            rows.push(Row { name: rest, objects: Vec::new(), questions: Vec::new() });
            continue;
        }
        let row = rows.last_mut().expect("a row begins with its name");
        match mark.split('@').next().expect("never empty") {
            "A" | "A!" | "P" => {
                let object = object(mark, rest, row.objects.len());
                row.objects.push(object);
            }
            "?" | "~" | "!" => row.questions.push((mark.chars().next().expect("not empty"), rest)),
            other => panic!("{}: {other} is no mark", row.name),
        }
    }
    rows
}

/// The YAML of a policy; the ones that come first are older.
fn object(mark: &str, spec: &str, number: usize) -> String {
    let (kind, namespace) = mark.split_once('@').unwrap_or((mark, "shop"));
    let dry_run = if kind == "A!" { ", annotations: {istio.io/dry-run: 'true'}" } else { "" };
    let kind = if kind == "P" { "PeerAuthentication" } else { "AuthorizationPolicy" };
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p{number}, namespace: \
         {namespace}, creationTimestamp: '2026-01-0{}T00:00:00Z'{dry_run}}}\nspec: {spec}\n",
        number + 1
    )
}

/// The world after these objects, and its mesh.
fn world(row: &Row<'_>) -> (World, Mesh) {
    let text = row.objects.iter().fold(SHOP.to_owned(), |text, object| format!("{text}---\n{object}"));
    let events = parse(&text).into_iter().map(|document| match document.outcome {
        Outcome::Accepted { object, .. } | Outcome::Rejected { closed: Some(object), .. } => {
            ObjectEvent::Put(object)
        }
        other => panic!("{}: {other:?}", row.name),
    });
    let aliases = ["old.example".parse().expect("a trust domain")].into();
    let mut world = World::new(Settings { trust_domain_aliases: aliases, ..Settings::default() });
    let mut mesh = Mesh::new();
    mesh.apply(world.apply(events).changes);
    (world, mesh)
}

/// `web`, `web:9090`
fn ask(mesh: &Mesh, who: &str) -> Decision {
    let (name, port) = who.split_once(':').unwrap_or((who, "8080"));
    let (_, identity, source) = PEERS.iter().find(|peer| peer.0 == name).expect("a peer");
    let identity: Option<Identity> = identity.map(|text| text.parse().expect("an identity"));
    let source: IpAddr = source.parse().expect("an address");
    let destination = SocketAddr::new("10.1.0.1".parse().expect("an address"), port.parse().expect("a port"));
    authorize(mesh, &uid("shop/cart"), &Request { identity: identity.as_ref(), source, destination })
}

#[test]
fn policies_decide_as_the_table_lists() {
    let rows = rows();
    assert!(rows.len() >= 60, "{} rows", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        let (world, mesh) = world(row);
        assert!(!row.questions.is_empty(), "{}: asks nothing", row.name);
        for (mark, question) in &row.questions {
            if *mark == '!' {
                if !world.conditions().any(|condition| condition.field.as_deref() == Some(question)) {
                    wrong.push(format!("{}: nothing is said of {question}", row.name));
                }
                continue;
            }
            for answer in question.split(", ") {
                let (who, expected) = answer.split_once(' ').expect("who and what");
                let expected = match expected {
                    "yes" => true,
                    "no" => false,
                    other => panic!("{}: {other}", row.name),
                };
                let decision = ask(&mesh, who);
                let found = if *mark == '?' {
                    decision.outcome.is_ok()
                } else {
                    let [dry] = &decision.dry_run[..] else { panic!("{}: {decision:?}", row.name) };
                    dry.matched
                };
                if found != expected {
                    wrong.push(format!("{}: {mark} {answer}: {decision:?}", row.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
