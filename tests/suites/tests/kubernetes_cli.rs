//! The command line `ambit` on a real Kubernetes, from an empty cluster to an empty cluster.

use std::time::Instant;

use ambit_harness::within;
use ambit_suites::Rows;
use ambit_suites::kubernetes::cli::{ambit, program};
use ambit_suites::kubernetes::manifests::shop;
use ambit_suites::kubernetes::remains::Remains;
use ambit_suites::kubernetes::{ANNOTATION, DEADLINE, Mesh, Pod, SYSTEM, run};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A pod that cannot be captured.
const ON_HOST: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: on-host, namespace: shop}\nspec:\n  \
                       hostNetwork: true\n  terminationGracePeriodSeconds: 0\n  containers:\n    - name: \
                       shop\n      image: docker.io/ambit/tests:0.1.0\n      args: [host, --listen, \
                       '[::]:18080']\n";
/// A pod without a node: no agent sees it, as on a node that is off.
const UNSEEN: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: unseen, namespace: shop}\nspec: \
                      {nodeSelector: {tests/node: none}, containers: [{name: shop, image: \
                      docker.io/ambit/tests:0.1.0}]}\n";
/// The API server takes it; Ambit does not.
const BAD: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: bad, \
                   namespace: shop}\nspec: {rules: [{when: [{key: source.ip, values: ['1.2.3']}]}]}\n";

/// A policy for the whole mesh.
const MESH_WIDE: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: \
                         default, namespace: ambit-system}\nspec: {mtls: {mode: PERMISSIVE}}\n";
/// Looks like Ambit, installed elsewhere.
const ELSEWHERE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: elsewhere}\n---\napiVersion: \
                         apps/v1\nkind: Deployment\nmetadata: {name: other, namespace: elsewhere, labels: \
                         {app.kubernetes.io/part-of: ambit}}\nspec: {replicas: 0, selector: {matchLabels: \
                         {app: other}}, template: {metadata: {labels: {app: other}}, spec: {containers: \
                         [{name: other, image: docker.io/ambit/tests:0.1.0}]}}}\n";

#[test]
fn cli_installs_inspects_and_uninstalls() -> Result<()> {
    let mesh = Mesh::prepare("cli")?;
    mesh.load("cli")?;
    mesh.cluster.apply(&shop("shop"))?;
    mesh.cluster.apply(ON_HOST)?;
    mesh.cluster.apply(UNSEEN)?;
    mesh.rolled_out("shop", &["deployment/client", "deployment/cart"])?;
    mesh.kubectl(&["-n", "shop", "wait", "--for=condition=Ready", "pod/on-host", "--timeout=120s"])?;
    let client = mesh.pod("shop", "app=client", None)?;
    let before = Remains::of(&mesh)?;

    let mut table = Rows::new();
    installing(&mesh, &mut table);
    membership(&mesh, &mut table);
    daemons(&mesh, &client, &mut table);
    failures(&mesh, &mut table);
    table.row("a namespace is released", || {
        let said = ambit(&mesh, &["release", "shop"])?.well()?;
        ensure!(said.contains("shop: 0 of 3 running pods are in the mesh"), "{said}");
        mesh.ask(&client, "cart.shop:80")
    });
    table.row("uninstalled, mesh-wide policies stay, and the namespace for their sake", || {
        mesh.cluster.apply(MESH_WIDE)?;
        let said = ambit(&mesh, &["uninstall"])?.well()?;
        ensure!(said.contains("Namespace ambit-system stays: it holds PeerAuthentication default"), "{said}");
        mesh.kubectl(&["-n", SYSTEM, "get", "peerauthentications.security.istio.io", "default"])?;
        ambit(&mesh, &["install"])?.well()?;
        mesh.kubectl(&["-n", SYSTEM, "delete", "peerauthentications.security.istio.io", "default"]).map(drop)
    });
    table.row("an installation in another namespace is not touched", || {
        mesh.cluster.apply(ELSEWHERE)?;
        for verb in ["install", "uninstall"] {
            let said = ambit(&mesh, &[verb])?.failed()?;
            ensure!(said.contains("Deployment other in elsewhere is of another installation"), "{said}");
        }
        mesh.kubectl(&["delete", "namespace", "elsewhere"]).map(drop)
    });
    table.row("uninstalled with the definitions, nothing is left", || {
        // As the agent annotates it.
        let annotation = format!("{ANNOTATION}=enabled");
        mesh.kubectl(&["-n", "shop", "annotate", "--field-manager=ambit", "pod", "unseen", &annotation])?;
        let said = ambit(&mesh, &["uninstall", "--crds"])?.well()?;
        println!("{said}");
        ensure!(said.contains("Namespace ambit-system deleted"), "{said}");
        before.are_back(&mesh)?;
        let definitions = mesh.kubectl(&["get", "customresourcedefinitions", "-o", "name"])?;
        ensure!(!definitions.contains("istio.io"), "{definitions}");
        mesh.ask(&client, "cart.shop:80").context("plain traffic afterwards")
    });
    table.row("uninstalled again, there is nothing to do", || ambit(&mesh, &["uninstall"])?.well().map(drop));
    table.finish();
    mesh.cluster.down()
}

fn installing(mesh: &Mesh, table: &mut Rows) {
    table.row("check says what an empty cluster lacks", || {
        let said = ambit(mesh, &["check"])?.failed()?;
        ensure!(said.contains("ok      API server") && said.contains("failed  CRDs"), "{said}");
        ensure!(said.contains("there is no DaemonSet ztunnel in ambit-system"), "{said}");
        Ok(())
    });
    table.row("installed, all is ready and well", || {
        let began = Instant::now();
        let said = ambit(mesh, &["install"])?.well().map_err(|error| error.context(mesh.story()))?;
        println!("ambit install: {:.1} s\n{said}", began.elapsed().as_secs_f64());
        checks(mesh, "all checks passed")?;
        let said = ambit(mesh, &["version"])?.well()?;
        ensure!(said.contains("ztunnel 0.1.0 (2 pods)"), "{said}");
        Ok(())
    });
    table.row("installed again, nothing changes", || {
        let generations = || {
            let path = "jsonpath={range .items[*]}{.metadata.name} {.metadata.generation}\n{end}";
            mesh.kubectl(&["-n", SYSTEM, "get", "deployments,daemonsets,networkpolicies", "-o", path])
        };
        let before = generations()?;
        ambit(mesh, &["install"])?.well()?;
        let after = generations()?;
        ensure!(before == after && before.contains("ztunnel"), "{before} became {after}");
        Ok(())
    });
    table.row("the image runs", || {
        let image = "--image=docker.io/ambit/cli:0.1.0";
        let arguments = ["-n", "shop", "run", "cli", image, "--restart=Never", "--", "version", "--client"];
        mesh.kubectl(&arguments)?;
        let succeeded = "--for=jsonpath={.status.phase}=Succeeded";
        mesh.kubectl(&["-n", "shop", "wait", succeeded, "pod/cli", "--timeout=120s"])?;
        let said = mesh.kubectl(&["-n", "shop", "logs", "cli"])?;
        mesh.kubectl(&["-n", "shop", "delete", "pod", "cli"])?;
        ensure!(said == "ambit 0.1.0\n", "{said}");
        Ok(())
    });
}

fn membership(mesh: &Mesh, table: &mut Rows) {
    let host = "on-host is not: host network";
    table.row("a namespace is enrolled; pods that cannot be captured are named", || {
        let said = ambit(mesh, &["enrol", "shop"])?.well().map_err(|error| error.context(mesh.story()))?;
        println!("{said}");
        ensure!(said.contains("shop: 2 of 3 running pods are in the mesh") && said.contains(host), "{said}");
        mesh.kubectl(&["-n", "shop", "label", "pod", "on-host", "istio.io/dataplane-mode=none"])?;
        checks(mesh, "ok      pods: 2 are in the mesh")
    });
    table.row("Ambit's own namespace is not", || {
        let said = ambit(mesh, &["enrol", SYSTEM])?.failed()?;
        ensure!(said.contains("never in the mesh"), "{said}");
        Ok(())
    });
}

fn daemons(mesh: &Mesh, client: &Pod, table: &mut Rows) {
    let pod = format!("{}/{}", client.namespace, client.name);
    table.row("an open connection is shown, in mutual TLS", || {
        let mut held = mesh.start(client, &["/ambit-load", "cart.shop:80", "--hold"])?;
        held.answers_again()?;
        within(DEADLINE, "the connection is listed", || {
            let said = ambit(mesh, &["ztunnel", "connections", "--pod", &pod, "-o", "json"])?.well()?;
            let open: Vec<Value> = serde_json::from_str(&said)?;
            let tunnel = open.iter().any(|it| it["mutual_tls"] == true && it["direction"] == "outbound");
            ensure!(tunnel, "{said}");
            Ok(())
        })?;
        let said = ambit(mesh, &["ztunnel", "connections", "--pod", &pod])?.well()?;
        println!("{said}");
        let row = said.lines().find(|line| line.contains("outbound")).context("no row")?;
        ensure!(row.starts_with("node1 ") && row.contains(" mutual ") && row.contains(&pod), "{said}");
        within(DEADLINE, "the other end is listed too", || {
            let said = ambit(mesh, &["ztunnel", "connections"])?.well()?;
            ensure!(
                said.lines().any(|line| line.starts_with("node2 ") && line.contains("inbound")),
                "{said}"
            );
            Ok(())
        })
    });
    table.row("one that ended is shown with its reason", || {
        within(DEADLINE, "it is listed", || {
            let said = ambit(mesh, &["ztunnel", "recent", "--node", "node1"])?.well()?;
            ensure!(said.lines().next().is_some_and(|head| head.contains("REASON")), "{said}");
            ensure!(said.lines().any(|line| line.contains(&pod)), "{said}");
            Ok(())
        })
    });
    table.row("what a daemon knows is shown, and through its address too", || {
        let said = ambit(mesh, &["ztunnel", "config", "--node", "node1"])?.well()?;
        ensure!(said.starts_with("node node1: ztunnel 0.1.0, connected"), "{said}");
        ensure!(said.contains("spiffe://cluster.local/ns/shop/sa/client"), "{said}");
        let daemon = mesh.pod(SYSTEM, "app.kubernetes.io/name=ztunnel", Some("node1"))?;
        let mut there = daemon.netns()?.command(program()?);
        let arguments = ["ztunnel", "config", "--address", "127.0.0.1:15000", "-o", "json"];
        let dump: Value = serde_json::from_str(&run(there.args(arguments))?)?;
        ensure!(dump["node"] == "node1", "{}", dump["node"]);
        Ok(())
    });
    table.row("a node without a daemon is no node", || {
        let said = ambit(mesh, &["ztunnel", "config", "--node", "node3"])?.failed()?;
        ensure!(said.contains("no ztunnel runs on node3"), "{said}");
        Ok(())
    });
}

fn failures(mesh: &Mesh, table: &mut Rows) {
    table.row("check names a policy that is not in force", || {
        mesh.cluster.apply(BAD)?;
        within(DEADLINE, "that and nothing else", || {
            let said = ambit(mesh, &["check"])?.failed()?;
            ensure!(said.contains("AuthorizationPolicy shop/bad: Invalid: "), "{said}");
            ensure!(said.contains("failed  objects") && said.contains("1 of 9 checks failed"), "{said}");
            Ok(())
        })?;
        mesh.kubectl(&["-n", "shop", "delete", "authorizationpolicies.security.istio.io", "bad"])?;
        checks(mesh, "all checks passed")
    });
    table.row("check says that the controllers are away", || {
        mesh.kubectl(&["-n", SYSTEM, "scale", "deployment/ambit-controller", "--replicas=0"])?;
        let said = ambit(mesh, &["check"])?.failed()?;
        ensure!(said.contains("failed  controller\n          scaled to 0 replicas"), "{said}");
        Ok(())
    });
    table.row("install brings them back", || {
        ambit(mesh, &["install"])?.well()?;
        checks(mesh, "all checks passed")
    });
}

/// Waits until `ambit check` prints this.
fn checks(mesh: &Mesh, words: &str) -> Result<()> {
    within(DEADLINE, words, || {
        let said = ambit(mesh, &["check"])?.said;
        ensure!(said.contains(words), "{said}");
        Ok(())
    })
}
