//! The mesh on a real Kubernetes of two nodes, as users install and use it. Rights are tested in
//! `rights.rs`, the end in `kubernetes_uninstall.rs`.

use ambit_harness::{Capture, within};
use ambit_suites::kubernetes::manifests::{deployment, service, shop, strict};
use ambit_suites::kubernetes::{DEADLINE, ENROLLED, Mesh, Pod, SYSTEM, node_netns, run};
use ambit_suites::{MARKER, Rows};
use anyhow::{Context, Result, ensure};

/// Rollouts whose losses are summed.
const ROLLOUTS: usize = 2;

/// How many connections to the shop named cart were in mutual TLS.
fn in_mutual_tls(mesh: &Mesh) -> Result<f64> {
    mesh.opened(&[
        ("reporter", "destination"),
        ("destination_workload", "cart"),
        ("connection_security_policy", "mutual_tls"),
    ])
}

#[test]
fn labelled_namespace_joins_the_mesh() -> Result<()> {
    let mesh = Mesh::prepare("install")?;
    mesh.cluster.apply(&shop("shop"))?;
    mesh.rolled_out("shop", &["deployment/client", "deployment/cart"])?;
    let took = mesh.install(&[])?;
    println!("helm install --wait: {:.1} s", took.as_secs_f64());
    let client = mesh.pod("shop", "app=client", None)?;

    let mut before = mesh.start(&client, &["/ambit-load", "cart.shop:80", "--hold"])?;
    before.answers_again().context("before the label")?;
    mesh.kubectl(&["label", "namespace", "shop", ENROLLED])?;
    mesh.enrolled("shop", true)?;
    before.answers_again().context("a connection from before the label")?;
    within(DEADLINE, "a new connection is in mutual TLS", || {
        let mutual = in_mutual_tls(&mesh)?;
        mesh.ask(&client, "cart.shop:80")?;
        let after = in_mutual_tls(&mesh)?;
        ensure!(after > mutual, "{mutual} connections in mutual TLS before, {after} after");
        Ok(())
    })?;
    before.answers_again().context("a connection from before the label, a while later")?;

    let mut during = mesh.start(&client, &["/ambit-load", "cart.shop:80", "--hold"])?;
    during.answers_again().context("in the mesh")?;
    mesh.kubectl(&["label", "namespace", "shop", "istio.io/dataplane-mode-"])?;
    mesh.enrolled("shop", false)?;
    within(DEADLINE, "a new connection is no longer in mutual TLS", || {
        let mutual = in_mutual_tls(&mesh)?;
        mesh.ask(&client, "cart.shop:80")?;
        let after = in_mutual_tls(&mesh)?;
        ensure!((after - mutual).abs() < 0.5, "{mutual} connections in mutual TLS before, {after} after");
        Ok(())
    })?;
    during.answers_again().context("a connection from the time in the mesh")?;
    before.answers_again().context("a connection from before the label, after it went")?;
    mesh.cluster.down()
}

/// Every kind of workload and probe.
fn workloads() -> String {
    let probe = |kind: &str| format!("{{{kind}, periodSeconds: 1, failureThreshold: 3, timeoutSeconds: 5}}");
    let probed = |name: &str, port: u16, probe: &str| {
        format!(
            "        - name: {name}\n          image: docker.io/ambit/tests:0.1.0\n          command: \
             [/ambit-probed]\n          env: [{{name: PORT_BASE, value: '{port}'}}]\n          \
             readinessProbe: {probe}\n          livenessProbe: {probe}\n"
        )
    };
    let containers = [
        probed("http", 8100, &probe("httpGet: {path: /, port: 8100}")),
        probed("tcp", 8200, &probe("tcpSocket: {port: 8201}")),
        probed("grpc", 8300, &probe("grpc: {port: 8302}")),
        probed("exec", 8400, &probe("exec: {command: [/ambit-probed, check]}")),
    ]
    .concat();
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: probed, namespace: work}}\nspec:\n  \
         replicas: 2\n  selector: {{matchLabels: {{app: probed}}}}\n  template:\n    metadata: {{labels: \
         {{app: probed}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      \
         containers:\n{containers}---\napiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: \
         work}}\nspec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: \
         8080}}]}}\n---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db, namespace: \
         work}}\nspec:\n  serviceName: db\n  replicas: 2\n  podManagementPolicy: Parallel\n  selector: \
         {{matchLabels: {{app: db}}}}\n  template:\n    metadata: {{labels: {{app: db}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n        - name: shop\n          image: \
         docker.io/ambit/tests:0.1.0\n          args: [db, --listen, '[::]:8080']\n          \
         readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}\n"
    )
}

/// Asks the StatefulSet's pods by their names, before it begins and when it runs.
fn job() -> &'static str {
    "apiVersion: batch/v1\nkind: Job\nmetadata: {name: once, namespace: work}\nspec:\n  backoffLimit: 0\n  \
     template:\n    metadata: {labels: {app: once}}\n    spec:\n      restartPolicy: Never\n      \
     initContainers:\n        - name: first\n          image: docker.io/ambit/tests:0.1.0\n          \
     command: [/ambit-load, 'db-0.db.work:8080', --count, '3', --strict]\n      containers:\n        - name: \
     load\n          image: docker.io/ambit/tests:0.1.0\n          command: [/ambit-load, \
     'db-1.db.work:8080', --count, '20', --strict]\n"
}

#[test]
fn workloads_with_probes_roll_out() -> Result<()> {
    let mesh = Mesh::up("workloads")?;
    let mut table = Rows::new();
    mesh.cluster.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: work, labels: {istio.io/dataplane-mode: \
         ambient}}\n",
    )?;
    mesh.cluster.apply(&strict("work"))?;
    mesh.cluster.apply(&workloads())?;
    table
        .row("pods of a StatefulSet are ready under STRICT", || mesh.rolled_out("work", &["statefulset/db"]));
    table.row("all kinds of probes pass under STRICT", || mesh.rolled_out("work", &["deployment/probed"]));
    table.row("a Job with an init container reaches the StatefulSet's pods by name, and completes", || {
        mesh.cluster.apply(job())?;
        let arguments = ["-n", "work", "wait", "--for=condition=complete", "job/once", "--timeout=180s"];
        mesh.kubectl(&arguments).map(drop).map_err(|error| error.context(mesh.story()))
    });
    table.row("what kubelets do not probe stays closed to the node", || {
        let pod = mesh.pod("work", "app=probed", None)?;
        let node = mesh.node(&pod.node)?;
        let curl = |port: u16| {
            let url = format!("http://{}:{port}/", pod.address);
            run(&mut node.run("curl", &["--silent", "--fail", "--max-time", "5", &url]))
        };
        curl(8100).context("a declared probe port")?;
        ensure!(curl(8190).is_err(), "a port that is no probe port answered the node in plaintext");
        Ok(())
    });
    table.row("a pod that is deleted comes back into the mesh under its name", || {
        let before = mesh.pod("work", "statefulset.kubernetes.io/pod-name=db-0", None)?;
        mesh.kubectl(&["-n", "work", "delete", "pod", "db-0", "--wait=true"])?;
        within(DEADLINE, "db-0 is ready again", || {
            let now = mesh.pod("work", "statefulset.kubernetes.io/pod-name=db-0", None)?;
            ensure!(now.uid != before.uid, "the old one is still there");
            Ok(())
        })?;
        mesh.rolled_out("work", &["statefulset/db"])?;
        mesh.enrolled("work", true)?;
        let other = mesh.pod("work", "statefulset.kubernetes.io/pod-name=db-1", None)?;
        mesh.ask(&other, "db-0.db.work:8080")
    });
    table.row("a rollout of 20 pods under load and STRICT loses no more than without a mesh", || {
        rollouts(&mesh)
    });
    table.finish();
    mesh.cluster.down()
}

/// The same rollouts outside and inside of the mesh. What one rollout loses is chance: sums are compared.
fn rollouts(mesh: &Mesh) -> Result<()> {
    let mut lost = Vec::new();
    for (namespace, label) in [("plain", ""), ("mesh", "istio.io/dataplane-mode: ambient")] {
        mesh.cluster.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{{label}}}}}\n"
        ))?;
        if !label.is_empty() {
            mesh.cluster.apply(&strict(namespace))?;
        }
        // Pods that are ending serve until the others have heard of it.
        let cart = deployment(namespace, "cart", 20, "").replace(
            "          readinessProbe",
            "          lifecycle: {preStop: {sleep: {seconds: 4}}}\n          readinessProbe",
        );
        let cart = cart.replace("terminationGracePeriodSeconds: 2", "terminationGracePeriodSeconds: 5");
        mesh.cluster
            .apply(&(cart + &service(namespace, "cart") + &deployment(namespace, "client", 1, "node1")))?;
        mesh.rolled_out(namespace, &["deployment/cart", "deployment/client"])?;
        let client = mesh.pod(namespace, "app=client", None)?;
        let each = (0..ROLLOUTS).map(|_| rollout(mesh, &client, namespace));
        lost.push(each.sum::<Result<u64>>()?);
        mesh.kubectl(&["delete", "namespace", namespace, "--wait=false"])?;
    }
    ensure!(lost[1] <= lost[0], "{} requests failed in the mesh, {} without", lost[1], lost[0]);
    Ok(())
}

/// A rollout of cart under load: the requests that failed.
fn rollout(mesh: &Mesh, client: &Pod, namespace: &str) -> Result<u64> {
    let target = format!("cart.{namespace}:80");
    let load = ["/ambit-load", &target, "--rate", "40", "--until", "/tmp/stop", "--timeout", "20"];
    let load = mesh.start(client, &load)?;
    mesh.kubectl(&["-n", namespace, "rollout", "restart", "deployment/cart"])?;
    mesh.rolled_out(namespace, &["deployment/cart"])?;
    mesh.exec(client, &["/ambit-load", "--touch", "/tmp/stop"])?;
    let report = load.finish()?;
    mesh.exec(client, &["/ambit-load", "--untouch", "/tmp/stop"])?;
    println!("rollout in {namespace}: {report}");
    ensure!(report["answered"].as_u64() > Some(100), "hardly any load: {report}");
    report["failed"].as_u64().context("no count")
}

#[test]
fn connections_fail_closed_without_the_daemon() -> Result<()> {
    let mesh = Mesh::up("closed")?;
    mesh.cluster.apply(&shop("shop"))?;
    mesh.kubectl(&["label", "namespace", "shop", ENROLLED])?;
    mesh.cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: outside}\n")?;
    mesh.rolled_out("shop", &["deployment/client", "deployment/cart"])?;
    mesh.enrolled("shop", true)?;

    // Nothing brings the daemon back to node1 until the taint goes: its pods no longer tolerate any.
    without_daemon(&mesh, "node1")?;
    let trace = Capture::start(&node_netns(mesh.node("node1")?)?)?;
    let late = |namespace: &str| {
        let marker = String::from_utf8_lossy(MARKER);
        let sender = format!(
            "        - name: sender\n          image: docker.io/ambit/tests:0.1.0\n          \
             command: [/ambit-load, 'cart.shop:80', --hold, --marker, '{marker}']\n---\n"
        );
        let shop = deployment(namespace, "late", 1, "node1");
        let shop = shop.replace(
            "    spec:\n      service",
            "    spec:\n      tolerations: [{operator: Exists}]\n      service",
        );
        shop.strip_suffix("---\n").unwrap_or(&shop).to_owned() + &sender
    };
    mesh.cluster.apply(&(late("shop") + &late("outside")))?;
    let mut table = Rows::new();
    table.row("a pod outside the mesh starts without the daemon", || {
        mesh.rolled_out("outside", &["deployment/late"])
    });
    table.row("a pod of the mesh does not, and says why", || {
        within(DEADLINE, "the kubelet reports the plugin's failure", || {
            let events =
                mesh.kubectl(&["-n", "shop", "get", "events", "-o", "jsonpath={.items[*].message}"])?;
            ensure!(events.contains("ambit-cni"), "no event names the plugin");
            Ok(())
        })?;
        let pods = mesh.pods("shop", "app=late")?;
        let pod = pods.first().context("no pod")?;
        let started = pod["status"]["containerStatuses"][0]["started"] == true;
        ensure!(!started && pod["status"]["phase"] == "Pending", "it started: {}", pod["status"]);
        Ok(())
    });
    table.row("it starts when the daemon is back", || {
        with_daemon(&mesh, "node1")?;
        mesh.rolled_out("shop", &["deployment/late"])?;
        mesh.enrolled("shop", true)
    });
    table.row("its traffic reached the other node, and never in plaintext", || {
        let late = mesh.pod("shop", "app=late", None)?;
        within(DEADLINE, "it was answered", || {
            let said = mesh.kubectl(&["-n", "shop", "logs", &late.name, "-c", "sender"])?;
            ensure!(said.contains("answered"), "{said}");
            Ok(())
        })?;
        let trace = trace.stop()?;
        ensure!(trace.tcp_port(15008) > 0, "no packet of a tunnel");
        let outside = mesh.pod("outside", "app=late", None)?;
        let readable = trace.holding(MARKER);
        println!("{readable} packets hold the marker; {} to or from port 15008", trace.tcp_port(15008));
        // The pod outside sends the same in plaintext: the trace would have seen it.
        let plain = trace.packets().filter(|packet| packet.source.ip().to_string() == outside.address);
        ensure!(
            plain.count() > 0 && readable > 0,
            "the trace did not see the pod outside: it proves nothing"
        );
        let mut leaked = trace.packets().filter(|packet| {
            packet.source.ip().to_string() == late.address
                && packet.payload.windows(MARKER.len()).any(|bytes| bytes == MARKER)
        });
        ensure!(leaked.next().is_none(), "plaintext of a pod of the mesh");
        Ok(())
    });
    table.finish();
    mesh.cluster.down()
}

/// The taint that keeps the daemon, and nothing else of this test, off a node.
const TAINT: &str = "tests/no-daemon";

/// Takes the daemon off a node, and keeps it off by a taint: its labels would take the node out of the mesh.
fn without_daemon(mesh: &Mesh, node: &str) -> Result<()> {
    let tolerations = serde_json::json!([{"key": "tests/other", "operator": "Exists"}]);
    let patch = serde_json::json!({"spec": {"template": {"spec": {"tolerations": tolerations}}}}).to_string();
    mesh.kubectl(&["-n", SYSTEM, "patch", "daemonset", "ztunnel", "-p", &patch])?;
    mesh.rolled_out(SYSTEM, &["daemonset/ztunnel"])?;
    mesh.kubectl(&["taint", "node", node, &format!("{TAINT}:NoSchedule")])?;
    let daemon = mesh.pod(SYSTEM, "app.kubernetes.io/name=ztunnel", Some(node))?;
    mesh.kubectl(&["-n", SYSTEM, "delete", "pod", &daemon.name, "--wait=false"])?;
    within(DEADLINE, "the daemon has left the node", || {
        let pods = mesh.pods(SYSTEM, "app.kubernetes.io/name=ztunnel")?;
        ensure!(!pods.iter().any(|pod| pod["spec"]["nodeName"] == node), "it is there");
        Ok(())
    })
}

fn with_daemon(mesh: &Mesh, node: &str) -> Result<()> {
    mesh.kubectl(&["taint", "node", node, &format!("{TAINT}-")])?;
    within(DEADLINE, "the daemon is back", || {
        mesh.pod(SYSTEM, "app.kubernetes.io/name=ztunnel", Some(node)).map(drop)
    })?;
    mesh.rolled_out(SYSTEM, &["daemonset/ztunnel"])
}
