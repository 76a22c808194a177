//! The mesh on a real Kubernetes of two nodes, as users install and use it. Who may do what is in `kubernetes_rights.rs`.

use ambit_harness::{Capture, within};
use ambit_suites::kubernetes::manifests::{deployment, service, shop, strict};
use ambit_suites::kubernetes::{ENROLLED, Mesh, PATIENCE, SYSTEM, node_netns, run};
use ambit_suites::{MARKER, Rows};
use anyhow::{Context, Result, ensure};

/// How many connections were in mutual TLS, and how many not, to the shop named cart.
fn security(mesh: &Mesh) -> Result<(f64, f64)> {
    let to = |policy| {
        mesh.opened(&[
            ("reporter", "destination"),
            ("destination_workload", "cart"),
            ("connection_security_policy", policy),
        ])
    };
    Ok((to("mutual_tls")?, to("none")?))
}

#[test]
fn install_and_label() -> Result<()> {
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
    within(PATIENCE, "a new connection is in mutual TLS", || {
        let (mutual, _) = security(&mesh)?;
        mesh.ask(&client, "cart.shop:80")?;
        let (after, _) = security(&mesh)?;
        ensure!(after > mutual, "{mutual} connections in mutual TLS before, {after} after");
        Ok(())
    })?;
    before.answers_again().context("a connection from before the label, a while later")?;

    let mut during = mesh.start(&client, &["/ambit-load", "cart.shop:80", "--hold"])?;
    during.answers_again().context("in the mesh")?;
    mesh.kubectl(&["label", "namespace", "shop", "istio.io/dataplane-mode-"])?;
    mesh.enrolled("shop", false)?;
    within(PATIENCE, "a new connection is no longer in mutual TLS", || {
        let (mutual, _) = security(&mesh)?;
        mesh.ask(&client, "cart.shop:80")?;
        let (after, _) = security(&mesh)?;
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
            "        - name: {name}\n          image: docker.io/ambit/tests:0.1.0\n          command: [/ambit-probed]\n          \
             env: [{{name: PORT_BASE, value: '{port}'}}]\n          readinessProbe: {probe}\n          livenessProbe: {probe}\n"
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
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: probed, namespace: work}}\nspec:\n  replicas: 2\n  \
         selector: {{matchLabels: {{app: probed}}}}\n  template:\n    metadata: {{labels: {{app: probed}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n{containers}---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: work}}\n\
         spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: 8080}}]}}\n---\n\
         apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db, namespace: work}}\nspec:\n  serviceName: db\n  replicas: 2\n  \
         podManagementPolicy: Parallel\n  selector: {{matchLabels: {{app: db}}}}\n  template:\n    metadata: {{labels: {{app: db}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n        - name: shop\n          image: docker.io/ambit/tests:0.1.0\n          \
         args: [db, --listen, '[::]:8080']\n          readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}\n"
    )
}

/// Asks the StatefulSet's pods by their names, before it begins and when it runs.
fn job() -> &'static str {
    "apiVersion: batch/v1\nkind: Job\nmetadata: {name: once, namespace: work}\nspec:\n  backoffLimit: 0\n  template:\n    \
         metadata: {labels: {app: once}}\n    spec:\n      restartPolicy: Never\n      initContainers:\n        - name: first\n          \
         image: docker.io/ambit/tests:0.1.0\n          command: [/ambit-load, 'db-0.db.work:8080', --count, '3', --strict]\n      containers:\n        \
         - name: load\n          image: docker.io/ambit/tests:0.1.0\n          command: [/ambit-load, 'db-1.db.work:8080', --count, '20', --strict]\n"
}

#[test]
fn workloads_probes_and_a_rollout() -> Result<()> {
    let mesh = Mesh::up("workloads")?;
    let mut table = Rows::new();
    mesh.cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: work, labels: {istio.io/dataplane-mode: ambient}}\n")?;
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
        within(PATIENCE, "db-0 is ready again", || {
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

/// The same rollout outside and inside of the mesh.
fn rollouts(mesh: &Mesh) -> Result<()> {
    let mut lost = Vec::new();
    for (namespace, label) in [("plain", ""), ("mesh", "istio.io/dataplane-mode: ambient")] {
        mesh.cluster.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{{label}}}}}\n"
        ))?;
        if !label.is_empty() {
            mesh.cluster.apply(&strict(namespace))?;
        }
        // Ended pods serve on while the others hear of it, as everywhere.
        let cart = deployment(namespace, "cart", 20, "").replace(
            "          readinessProbe",
            "          lifecycle: {preStop: {sleep: {seconds: 4}}}\n          readinessProbe",
        );
        let cart = cart.replace("terminationGracePeriodSeconds: 2", "terminationGracePeriodSeconds: 5");
        mesh.cluster
            .apply(&(cart + &service(namespace, "cart") + &deployment(namespace, "client", 1, "node1")))?;
        mesh.rolled_out(namespace, &["deployment/cart", "deployment/client"])?;
        let client = mesh.pod(namespace, "app=client", None)?;
        let load = mesh.start(
            &client,
            &[
                "/ambit-load",
                &format!("cart.{namespace}:80"),
                "--rate",
                "40",
                "--until",
                "/tmp/stop",
                "--patience",
                "20",
            ],
        )?;
        mesh.kubectl(&["-n", namespace, "rollout", "restart", "deployment/cart"])?;
        mesh.rolled_out(namespace, &["deployment/cart"])?;
        mesh.exec(&client, &["/ambit-load", "--touch", "/tmp/stop"])?;
        let report = load.finish()?;
        println!("rollout in {namespace}: {report}");
        ensure!(report["answered"].as_u64() > Some(100), "hardly any load: {report}");
        lost.push(report["failed"].as_u64().context("no count")?);
        mesh.kubectl(&["delete", "namespace", namespace, "--wait=false"])?;
    }
    ensure!(lost[1] <= lost[0], "{} requests failed in the mesh, {} without", lost[1], lost[0]);
    Ok(())
}

#[test]
fn closed_when_the_daemon_is_away() -> Result<()> {
    let mesh = Mesh::up("closed")?;
    mesh.cluster.apply(&shop("shop"))?;
    mesh.kubectl(&["label", "namespace", "shop", ENROLLED])?;
    mesh.cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: outside}\n")?;
    mesh.rolled_out("shop", &["deployment/client", "deployment/cart"])?;
    mesh.enrolled("shop", true)?;

    // Nothing brings the daemon back to node1 until the taint goes: its pods do not tolerate this one.
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
        within(PATIENCE, "the kubelet reports the plugin's failure", || {
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
        within(PATIENCE, "it was answered", || {
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

/// Takes the daemon off a node, and keeps it off.
fn without_daemon(mesh: &Mesh, node: &str) -> Result<()> {
    let patch = r#"{"spec":{"template":{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"tests/no-daemon","operator":"DoesNotExist"}]}]}}}}}}}"#;
    mesh.kubectl(&["label", "node", node, "tests/no-daemon=yes"])?;
    mesh.kubectl(&["-n", SYSTEM, "patch", "daemonset", "ztunnel", "-p", patch])?;
    within(PATIENCE, "the daemon has left the node", || {
        let pods = mesh.pods(SYSTEM, "app.kubernetes.io/name=ztunnel")?;
        ensure!(!pods.iter().any(|pod| pod["spec"]["nodeName"] == node), "it is there");
        Ok(())
    })?;
    mesh.rolled_out(SYSTEM, &["daemonset/ztunnel"])
}

fn with_daemon(mesh: &Mesh, node: &str) -> Result<()> {
    mesh.kubectl(&["label", "node", node, "tests/no-daemon-"])?;
    within(PATIENCE, "the daemon is back", || {
        mesh.pod(SYSTEM, "app.kubernetes.io/name=ztunnel", Some(node)).map(drop)
    })?;
    mesh.rolled_out(SYSTEM, &["daemonset/ztunnel"])
}

#[test]
fn without_controllers_and_uninstalled() -> Result<()> {
    let mesh = Mesh::prepare("uninstall")?;
    mesh.cluster.apply(&shop("shop"))?;
    mesh.rolled_out("shop", &["deployment/client", "deployment/cart"])?;
    let before = leftovers(&mesh)?;
    mesh.install(&[])?;
    mesh.kubectl(&["label", "namespace", "shop", ENROLLED])?;
    mesh.enrolled("shop", true)?;
    mesh.cluster.apply(&strict("shop"))?;
    let client = mesh.pod("shop", "app=client", None)?;

    let mut table = Rows::new();
    table.row("no request fails while there is no controller", || {
        let load =
            mesh.start(&client, &["/ambit-load", "cart.shop:80", "--rate", "40", "--until", "/tmp/stop"])?;
        mesh.kubectl(&["-n", SYSTEM, "scale", "deployment/ambit-controller", "--replicas=0"])?;
        within(PATIENCE, "all controllers are gone", || {
            let pods = mesh.pods(SYSTEM, "app.kubernetes.io/name=ambit-controller")?;
            ensure!(pods.is_empty(), "{} are there", pods.len());
            Ok(())
        })?;
        mesh.ask(&client, "cart.shop:80")?;
        mesh.kubectl(&["-n", SYSTEM, "scale", "deployment/ambit-controller", "--replicas=2"])?;
        mesh.rolled_out(SYSTEM, &["deployment/ambit-controller"])?;
        mesh.exec(&client, &["/ambit-load", "--touch", "/tmp/stop"])?;
        let report = load.finish()?;
        println!("all controllers away and back: {report}");
        ensure!(report["failed"] == 0 && report["answered"].as_u64() > Some(40), "{report}");
        Ok(())
    });
    table.row("a policy that is applied after their return acts", || {
        mesh.cluster.apply(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: shop}\n\
             spec: {selector: {matchLabels: {app: cart}}, action: ALLOW, rules: [{from: [{source: {namespaces: [elsewhere]}}]}]}\n",
        )?;
        within(PATIENCE, "requests are refused", || {
            ensure!(mesh.ask(&client, "cart.shop:80").is_err(), "answered");
            Ok(())
        })?;
        within(PATIENCE, "its status says that it is in force", || {
            let policy = mesh.get(&["authorizationpolicies.security.istio.io", "-n", "shop", "nobody"])?;
            let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
            ensure!(conditions.iter().any(|condition| condition["status"] == "True"), "{}", policy["status"]);
            Ok(())
        })?;
        mesh.kubectl(&["-n", "shop", "delete", "authorizationpolicies.security.istio.io", "nobody"])?;
        within(PATIENCE, "requests are answered again", || mesh.ask(&client, "cart.shop:80"))
    });
    table.row("uninstalled, nothing is left on the nodes", || {
        run(&mut mesh.cluster.helm(&[
            "uninstall",
            "ambit",
            "--namespace",
            SYSTEM,
            "--wait",
            "--timeout",
            "3m",
        ]))?;
        within(PATIENCE, "the nodes are as before", || {
            let after = leftovers(&mesh)?;
            for (node, (before, after)) in before.iter().zip(&after).enumerate() {
                let new: Vec<_> = after.iter().filter(|thing| !before.contains(thing)).collect();
                let gone: Vec<_> = before.iter().filter(|thing| !after.contains(thing)).collect();
                ensure!(
                    new.is_empty() && gone.is_empty(),
                    "node{}: left {new:?}, missing {gone:?}",
                    node + 1
                );
            }
            Ok(())
        })?;
        // Annotations are of the API, not of the nodes: the agents take them off if they still may (Helm takes their rights at once).
        mesh.ask(&client, "cart.shop:80").context("plain traffic afterwards")
    });
    table.finish();
    mesh.cluster.down()
}

/// What an installation could leave on each node: files where it writes, pins, programs at the hooks, rules. (kube-proxy takes its own
/// chains away when it likes.)
fn leftovers(mesh: &Mesh) -> Result<Vec<Vec<String>>> {
    let look = "find /opt/cni/bin /etc/cni/net.d /run/ambit /sys/fs/bpf -printf '%p %y %s\\n' 2>/dev/null; \
                cat /etc/cni/net.d/*; \
                bpftool cgroup tree $(awk '$3==\"cgroup2\"{print $2; exit}' /proc/mounts) | awk 'NF>1{print $2,$3,$4}' | sort; \
                nft list tables | grep -v kube-proxy; ip rule; ip route show table all type local | grep -v proto; true";
    mesh.cluster
        .nodes()
        .iter()
        .map(|node| Ok(run(&mut node.run("bash", &["-c", look]))?.lines().map(str::to_owned).collect()))
        .collect()
}
