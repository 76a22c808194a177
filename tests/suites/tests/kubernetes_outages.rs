//! Outages under traffic: the API server and etcd, a node, ztunnel upgraded by the chart.

use ambit_harness::within;
use ambit_suites::Rows;
use ambit_suites::kubernetes::manifests::{deployment, service, shop, strict};
use ambit_suites::kubernetes::{DEADLINE, ENROLLED, Mesh, Pod, Running, SYSTEM};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

#[test]
fn traffic_survives_outages_of_each_component() -> Result<()> {
    let mesh = Mesh::up("outages")?;
    mesh.cluster.apply(&shop("shop"))?;
    // Both nodes serve this one, and pairs of one node take the direct path.
    mesh.cluster.apply(&(deployment("shop", "both", 4, "") + &service("shop", "both")))?;
    mesh.kubectl(&["label", "namespace", "shop", ENROLLED])?;
    mesh.cluster.apply(&strict("shop"))?;
    mesh.rolled_out("shop", &["deployment/client", "deployment/cart", "deployment/both"])?;
    mesh.enrolled("shop", true)?;
    let client = mesh.pod("shop", "app=client", None)?;

    let mut table = Rows::new();
    table.row("API server and etcd restarted: no request fails", || {
        let load = load(&mesh, &client)?;
        mesh.cluster.restart_control_plane()?;
        mesh.cluster.ready()?;
        mesh.ask(&client, "cart.shop:80")?;
        no_failure("API server and etcd restarted", &ended(&mesh, &client, load)?)
    });
    table.row("ztunnel upgraded by the chart: no new connection fails", || {
        let load = load(&mesh, &client)?;
        let mut tunnel = mesh.start(&client, &["/ambit-load", "cart.shop:80", "--hold"])?;
        tunnel.answers_again()?;
        let before = daemons(&mesh)?;
        let took = mesh.install(&["ztunnel.drainTimeoutSeconds=5"])?;
        let after = daemons(&mesh)?;
        ensure!(before.iter().all(|name| !after.contains(name)), "not replaced: {before:?} {after:?}");
        println!("helm upgrade: {:.1} s", took.as_secs_f64());
        let report = ended(&mesh, &client, load)?;
        let open = tunnel.answers_again();
        println!(
            "a tunnelled connection from before the upgrade: {}",
            if open.is_ok() { "lives on" } else { "was cut" }
        );
        no_failure("ztunnel upgraded", &report)
    });
    table.row(
        "a node rebooted: its pods come back into the mesh, and nothing else is disturbed for good",
        || {
            let node = mesh.node("node2")?;
            let load = load(&mesh, &client)?;
            node.reboot()?;
            mesh.cluster.ready()?;
            mesh.rolled_out(SYSTEM, &["daemonset/ztunnel", "deployment/ambit-controller"])?;
            mesh.rolled_out("shop", &["deployment/cart", "deployment/both"])?;
            mesh.enrolled("shop", true)?;
            within(DEADLINE, "the rebooted node answers", || mesh.ask(&client, "cart.shop:80"))?;
            let report = ended(&mesh, &client, load)?;
            // Requests to a node that is off fail, as they do without a mesh: how long is what is reported.
            println!("node rebooted: {report}");
            for target in ["cart.shop:80", "both.shop:80"] {
                for _ in 0..20 {
                    mesh.ask(&client, target).with_context(|| format!("{target}, after the reboot"))?;
                }
            }
            Ok(())
        },
    );
    table.finish();
    mesh.cluster.down()
}

/// Constant load from the client to the pods of both nodes.
fn load(mesh: &Mesh, client: &Pod) -> Result<Running> {
    mesh.start_on_node(
        client,
        &["/ambit-load", "both.shop:80", "--rate", "40", "--until", "/tmp/stop", "--timeout", "20"],
    )
}

/// Ends the load: what it saw.
fn ended(mesh: &Mesh, client: &Pod, load: Running) -> Result<Value> {
    mesh.exec(client, &["/ambit-load", "--touch", "/tmp/stop"])?;
    let report = load.finish()?;
    mesh.exec(client, &["/ambit-load", "--untouch", "/tmp/stop"])?;
    Ok(report)
}

fn no_failure(what: &str, report: &Value) -> Result<()> {
    println!("{what}: {report}");
    ensure!(report["failed"] == 0 && report["answered"].as_u64() > Some(40), "{report}");
    Ok(())
}

fn daemons(mesh: &Mesh) -> Result<Vec<String>> {
    let pods = mesh.pods(SYSTEM, "app.kubernetes.io/name=ztunnel")?;
    Ok(pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
}
