//! Waypoints on a real Kubernetes: made for a Gateway, in force for routes, replaced under load, and gone
//! with their Gateway.

use ambit_harness::within;
use ambit_suites::Rows;
use ambit_suites::kubernetes::cli::ambit;
use ambit_suites::kubernetes::manifests::{deployment, service, shop};
use ambit_suites::kubernetes::{DEADLINE, ENROLLED, Mesh, Pod};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The pods of the waypoint.
const WAYPOINTS: &str = "gateway.networking.k8s.io/gateway-name=gate";
const BOUND: &str = "istio.io/use-waypoint=gate";

fn gateway(name: &str, infrastructure: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: \
         shop}}\nspec:\n  gatewayClassName: ambit-waypoint\n  listeners: [{{name: mesh, port: 15008, \
         protocol: HBONE}}]\n  infrastructure: {{{infrastructure}}}\n"
    )
}

/// All requests for cart go to this service.
fn route(to: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: cart, namespace: \
         shop}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: cart, port: 80}}]\n  rules: \
         [{{backendRefs: [{{name: {to}, port: 80}}]}}]\n"
    )
}

fn parameters(text: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: size, namespace: shop}}\ndata: {{waypoint.yaml: \
         '{text}'}}\n"
    )
}

/// A condition of a Gateway: its status and reason.
fn condition(mesh: &Mesh, gateway: &str, kind: &str) -> Result<(String, String)> {
    let object = mesh.get(&["gateways.gateway.networking.k8s.io", "-n", "shop", gateway])?;
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    let found = found.with_context(|| format!("no condition {kind}: {}", object["status"]))?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("reason")))
}

fn stands(mesh: &Mesh, gateway: &str, kind: &str, status: &str, reason: &str) -> Result<()> {
    within(DEADLINE, &format!("Gateway {gateway} says {kind}: {status} ({reason})"), || {
        let found = condition(mesh, gateway, kind)?;
        ensure!(found == (status.to_owned(), reason.to_owned()), "{found:?}");
        Ok(())
    })
}

/// How many requests the waypoint's pods have logged.
fn passed(mesh: &Mesh) -> Result<usize> {
    let logs = mesh.kubectl(&["-n", "shop", "logs", "-l", WAYPOINTS, "--tail=-1"])?;
    Ok(logs.matches("request complete").count())
}

/// Asks cart until the waypoint has seen it. A request is in the log a moment after its answer, and the logs
/// of a pod that ends are gone with it.
fn passes(mesh: &Mesh, client: &Pod) -> Result<()> {
    within(DEADLINE, "a request passes the waypoint", || {
        let before = passed(mesh)?;
        mesh.ask(client, "cart.shop:80")?;
        ensure!(passed(mesh)? > before, "it did not");
        Ok(())
    })
}

#[test]
fn waypoints_are_made_for_gateways() -> Result<()> {
    let mesh = Mesh::prepare("waypoint")?;
    mesh.load("waypoint")?;
    let definitions = mesh.cluster.gateway_api().display().to_string();
    mesh.kubectl(&["apply", "--server-side", "-f", &definitions])?;
    mesh.install(&[])?;
    mesh.cluster
        .apply(&(shop("shop") + &deployment("shop", "other", 1, "node1") + &service("shop", "other")))?;
    mesh.kubectl(&["label", "namespace", "shop", ENROLLED])?;
    mesh.rolled_out("shop", &["deployment/client", "deployment/cart", "deployment/other"])?;
    mesh.enrolled("shop", true)?;
    let client = mesh.pod("shop", "app=client", None)?;
    let mut table = Rows::new();
    table.row("a Gateway gets its waypoint, and says so", || {
        mesh.cluster.apply(&gateway("gate", "labels: {team: shop}"))?;
        stands(&mesh, "gate", "ambit.dev/Provisioned", "True", "Provisioned")?;
        mesh.rolled_out("shop", &["deployment/gate"])?;
        stands(&mesh, "gate", "Programmed", "True", "Programmed")?;
        let class = mesh.get(&["gatewayclasses.gateway.networking.k8s.io", "ambit-waypoint"])?;
        let accepted = class["status"]["conditions"].as_array().into_iter().flatten();
        ensure!(accepted.clone().any(|it| it["type"] == "Accepted" && it["status"] == "True"), "{class}");
        let pods = mesh.pods("shop", WAYPOINTS)?;
        ensure!(pods.len() == 1 && pods[0]["metadata"]["labels"]["team"] == "shop", "{pods:?}");
        Ok(())
    });
    table.row("labelled, requests pass it", || {
        mesh.kubectl(&["label", "namespace", "shop", BOUND])?;
        passes(&mesh, &client)
    });
    table.row("a route of the service acts", || {
        mesh.cluster.apply(&route("other"))?;
        within(DEADLINE, "the other service answers", || {
            let said = mesh.said(&client, "cart.shop:80", "1")?;
            ensure!(said.iter().all(|answer| answer.starts_with("other(")), "{said:?}");
            Ok(())
        })?;
        within(DEADLINE, "the route's status says so", || {
            let object = mesh.get(&["httproutes.gateway.networking.k8s.io", "-n", "shop", "cart"])?;
            let conditions = object["status"]["parents"][0]["conditions"].as_array().cloned();
            let conditions = conditions.unwrap_or_default();
            let holds = |kind: &str| conditions.iter().any(|it| it["type"] == kind && it["status"] == "True");
            ensure!(holds("Accepted") && holds("ResolvedRefs"), "{}", object["status"]);
            Ok(())
        })
    });
    table.row("scaled up, rolled out and scaled down under load, no request fails", || {
        under_load(&mesh, &client)
    });
    table.row("wrong parameters are a condition, and change nothing", || {
        mesh.cluster.apply(&parameters("{replica: 3}"))?;
        stands(&mesh, "gate", "ambit.dev/Provisioned", "False", "InvalidParameters")?;
        passes(&mesh, &client).context("the waypoint is gone")?;
        mesh.cluster.apply(&parameters("{}"))?;
        stands(&mesh, "gate", "ambit.dev/Provisioned", "True", "Provisioned")
    });
    table.row("a Service of the user's is not taken over", || {
        mesh.cluster.apply(&gateway("cart", ""))?;
        stands(&mesh, "cart", "ambit.dev/Provisioned", "False", "Conflict")?;
        let service = mesh.get(&["service", "-n", "shop", "cart"])?;
        ensure!(service["spec"]["selector"]["app"] == "cart", "{service}");
        mesh.kubectl(&["-n", "shop", "delete", "gateways.gateway.networking.k8s.io", "cart"]).map(drop)
    });
    table.row("with its Gateway it is gone, and requests go on", || {
        mesh.kubectl(&["-n", "shop", "delete", "gateways.gateway.networking.k8s.io", "gate"])?;
        mesh.kubectl(&["-n", "shop", "delete", "httproutes.gateway.networking.k8s.io", "cart"])?;
        within(DEADLINE, "nothing of the waypoint is left", || {
            let left = mesh.get(&[
                "deployments,services,serviceaccounts,configmaps",
                "-n",
                "shop",
                "-l",
                WAYPOINTS,
            ])?;
            let left: Vec<&Value> = left["items"].as_array().into_iter().flatten().collect();
            ensure!(left.is_empty(), "{} objects are left", left.len());
            Ok(())
        })?;
        within(DEADLINE, "cart answers", || {
            let said = mesh.said(&client, "cart.shop:80", "1")?;
            ensure!(said.iter().all(|answer| answer.starts_with("cart(")), "{said:?}");
            Ok(())
        })
    });
    table.row("the command line makes, binds, lists, explains and deletes one", || {
        command_line(&mesh, &client)
    });
    table.finish();
    mesh.cluster.down()
}

fn command_line(mesh: &Mesh, client: &Pod) -> Result<()> {
    mesh.kubectl(&["label", "namespace", "shop", "istio.io/use-waypoint-"])?;
    let said = ambit(mesh, &["waypoint", "status", "gate", "-n", "shop"])?.failed()?;
    ensure!(said.contains("there is no waypoint shop/gate"), "{said}");
    let foreign = gateway("foreign", "").replace("ambit-waypoint", "other");
    mesh.cluster.apply(&foreign)?;
    for verb in ["apply", "delete"] {
        let said = ambit(mesh, &["waypoint", verb, "foreign", "-n", "shop"])?.failed()?;
        ensure!(said.contains("Gateway shop/foreign has the class \"other\""), "{said}");
    }
    let apply = ["waypoint", "apply", "gate", "-n", "shop", "--for", "all", "--bind-namespace"];
    let said = ambit(mesh, &apply)?.well()?;
    ensure!(said.contains("waypoint shop/gate is programmed"), "{said}");
    passes(mesh, client)?;
    let said = ambit(mesh, &["waypoint", "list"])?.well()?;
    let line: Vec<&str> =
        said.lines().find(|line| line.contains(" gate ")).unwrap_or_default().split_whitespace().collect();
    ensure!(line.len() == 6 && line[..4] == ["shop", "gate", "all", "True"], "{said}");
    ensure!(!said.contains("foreign"), "{said}");
    let said = ambit(mesh, &["waypoint", "status", "gate", "-n", "shop"])?.well()?;
    ensure!(said.contains("Programmed") && said.contains("namespace shop is bound to it"), "{said}");
    let said = ambit(mesh, &["waypoint", "delete", "gate", "-n", "shop"])?.well()?;
    ensure!(said.contains("namespace shop still has its label istio.io/use-waypoint"), "{said}");
    within(DEADLINE, "cart answers without it", || mesh.ask(client, "cart.shop:80"))
}

fn under_load(mesh: &Mesh, client: &Pod) -> Result<()> {
    let load = mesh.start(
        client,
        &["/ambit-load", "cart.shop:80", "--rate", "40", "--until", "/tmp/stop", "--timeout", "20"],
    )?;
    mesh.cluster.apply(&parameters("{replicas: 2}"))?;
    mesh.cluster.apply(&gateway("gate", "parametersRef: {group: '', kind: ConfigMap, name: size}"))?;
    let size = |wanted: u64| {
        within(DEADLINE, &format!("there are {wanted} waypoints"), || {
            let found = mesh.get(&["deployment", "-n", "shop", "gate"])?;
            let ready = found["status"]["readyReplicas"].as_u64();
            let all = found["status"]["replicas"].as_u64();
            ensure!(ready == Some(wanted) && all == Some(wanted), "{}", found["status"]);
            Ok(())
        })
    };
    size(2)?;
    within(DEADLINE, "two waypoints have a disruption budget", || {
        mesh.get(&["poddisruptionbudget", "-n", "shop", "gate"]).map(drop)
    })?;
    mesh.kubectl(&["-n", "shop", "rollout", "restart", "deployment/gate"])?;
    mesh.rolled_out("shop", &["deployment/gate"])?;
    mesh.cluster.apply(&parameters("{replicas: 1}"))?;
    size(1)?;
    mesh.exec(client, &["/ambit-load", "--touch", "/tmp/stop"])?;
    let report = load.finish()?;
    println!("waypoint scaled up, rolled out, scaled down: {report}");
    if report["failed"] != 0 {
        let pod = format!("{}/{}", client.namespace, client.name);
        let recent = ambit(mesh, &["ztunnel", "recent", "--pod", &pod])?.said;
        let failed: Vec<&str> = recent.lines().filter(|line| !line.contains(" closed ")).take(20).collect();
        bail!("{report}\n{}", failed.join("\n"));
    }
    ensure!(report["answered"].as_u64() > Some(100), "{report}");
    Ok(())
}
