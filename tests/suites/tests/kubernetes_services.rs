//! How services are reached on a real Kubernetes, and what arrives at a pod: the tables of
//! `docs/guide/services.md`, on the wire.
//!
//! First without STRICT (what comes from where, and with which identity), then with it: what is answered then
//! came by identity.

use std::process::Command;

use ambit_harness::within;
use ambit_suites::Rows;
use ambit_suites::kubernetes::manifests::services::{BALANCER, EXTERNAL, addresses, pods};
use ambit_suites::kubernetes::manifests::strict;
use ambit_suites::kubernetes::{DEADLINE, Mesh, Pod, run};
use anyhow::{Context, Result, ensure};

/// Requests enough to see every endpoint: of two, one is missed once in a million times.
const MANY: &str = "20";

#[test]
fn services_of_every_kind_are_reached() -> Result<()> {
    let mesh = Mesh::up("services")?;
    for (namespace, label) in [
        ("shop", "istio.io/dataplane-mode: ambient"),
        ("watch", "istio.io/dataplane-mode: ambient"),
        ("outside", ""),
    ] {
        mesh.cluster.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{{label}}}}}\n"
        ))?;
    }
    for node in ["node1", "node2"] {
        let labels = [
            "topology.kubernetes.io/region=here".to_owned(),
            format!("topology.kubernetes.io/zone=of-{node}"),
        ];
        mesh.kubectl(&["label", "node", node, &labels[0], &labels[1]])?;
    }
    mesh.cluster.apply(&pods())?;
    mesh.cluster.apply(&addresses())?;
    let ingress = format!(r#"{{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{BALANCER}"}}]}}}}}}"#);
    mesh.kubectl(&[
        "-n",
        "shop",
        "patch",
        "service",
        "balanced",
        "--subresource=status",
        "--type=merge",
        "-p",
        &ingress,
    ])?;
    for name in ["client", "neighbour", "cart", "probed", "near", "far"] {
        mesh.rolled_out("shop", &[&format!("deployment/{name}")])?;
    }
    mesh.rolled_out("outside", &["deployment/client"])?;
    mesh.rolled_out("watch", &["deployment/prometheus"])?;
    mesh.enrolled("shop", true)?;
    mesh.enrolled("watch", true)?;

    let view = View::of(&mesh)?;
    let mut table = Rows::new();
    plaintext(&view, &mut table);
    mesh.cluster.apply(&strict("shop"))?;
    within(DEADLINE, "STRICT holds", || {
        for pod in [&view.cart, &view.mesh.pod("shop", "app=probed", None)?] {
            view.mesh.unanswered(&view.outside, &pod.target(8080))?;
        }
        Ok(())
    })?;
    refused(&view, &mut table);
    within_the_mesh(&view, &mut table);
    endpoints(&view, &mut table);
    scrapes(&view, &mut table);
    table.finish();
    mesh.cluster.down()
}

/// The cluster, and the pods that rows are about.
struct View<'a> {
    mesh: &'a Mesh,
    /// In the mesh, on node1; the servers are on node2.
    client: Pod,
    /// In the mesh, on node2.
    neighbour: Pod,
    /// On node1, not in the mesh.
    outside: Pod,
    prometheus: Pod,
    cart: Pod,
    /// Of the two nodes.
    nodes: [String; 2],
}

/// `host:port` of a pod.
trait Target {
    fn target(&self, port: u16) -> String;
}

impl Target for Pod {
    fn target(&self, port: u16) -> String {
        format!("{}:{port}", self.address)
    }
}

impl<'a> View<'a> {
    fn of(mesh: &'a Mesh) -> Result<Self> {
        Ok(Self {
            mesh,
            client: mesh.pod("shop", "app=client", None)?,
            neighbour: mesh.pod("shop", "app=neighbour", None)?,
            outside: mesh.pod("outside", "app=client", None)?,
            prometheus: mesh.pod("watch", "app=prometheus", None)?,
            cart: mesh.pod("shop", "app=cart", None)?,
            nodes: [mesh.node("node1")?.address().to_string(), mesh.node("node2")?.address().to_string()],
        })
    }

    /// Asks once from a pod: which server answered, and the client as it saw it.
    fn ask(&self, from: &Pod, target: &str) -> Result<String> {
        Ok(self.mesh.said(from, target, "1")?.remove(0))
    }

    /// Asks once from a pod: the name of the server that answered.
    fn who(&self, from: &Pod, target: &str) -> Result<String> {
        let said = self.ask(from, target)?;
        Ok(said.split('(').next().unwrap_or_default().to_owned())
    }

    /// The host's own address in the nodes' network.
    fn host(&self) -> Result<String> {
        let route = run(Command::new("ip").args(["-4", "-json", "route", "get", &self.nodes[0]]))?;
        let route: serde_json::Value = serde_json::from_str(&route)?;
        route[0]["prefsrc"].as_str().map(str::to_owned).context("no source address")
    }

    /// How many connections a workload has had, by how they came: `mutual_tls`, or `unknown`.
    fn arrived(&self, workload: &str, security: &str) -> Result<f64> {
        self.mesh.opened(&[
            ("reporter", "destination"),
            ("destination_workload", workload),
            ("connection_security_policy", security),
        ])
    }

    /// Asks from a pod, and requires that the connection arrived in mutual TLS: which server answered.
    fn in_tls(&self, from: &Pod, target: &str, workload: &str) -> Result<String> {
        let before = self.arrived(workload, "mutual_tls")?;
        let plain = self.arrived(workload, "unknown")?;
        let said = self.ask(from, target).with_context(|| target.to_owned())?;
        within(DEADLINE, "it is counted as mutual TLS", || {
            ensure!(self.arrived(workload, "mutual_tls")? > before, "{workload}: {before} as before");
            Ok(())
        })?;
        let after = self.arrived(workload, "unknown")?;
        ensure!((after - plain).abs() < 0.5, "{workload} had {plain} connections in plaintext, {after} now");
        Ok(said)
    }
}

/// Asks from the host, which is no node: what was answered.
fn outside(host: &str, port: u16) -> Result<String> {
    let url = format!("http://{host}:{port}/");
    // A connection without an answer is given up.
    let arguments = ["--silent", "--show-error", "--fail", "--max-time", "20", &url];
    Ok(run(Command::new("curl").args(arguments))?.trim().to_owned())
}

fn is(said: &str, expected: &str) -> Result<()> {
    ensure!(said == expected, "{said:?} instead of {expected:?}");
    Ok(())
}

/// What arrives where plaintext is allowed, and with which identity.
fn plaintext(view: &View, table: &mut Rows) {
    let [first, second] = &view.nodes;
    table.row("hostPort from outside: arrives with the client's address", || {
        let said = within(DEADLINE, "it is answered", || outside(second, 18080))?;
        is(&said, &format!("cart({})", view.host()?))
    });
    table.row("NodePort, externalTrafficPolicy Cluster: arrives with the address of the node", || {
        let said = within(DEADLINE, "it is answered", || outside(first, 30080))?;
        is(&said, &format!("cart({first})"))
    });
    table.row("NodePort, externalTrafficPolicy Local: arrives with the client's address", || {
        let said = within(DEADLINE, "it is answered", || outside(second, 30081))?;
        is(&said, &format!("cart({})", view.host()?))
    });
    table.row("the same on the other node: nothing arrives, as without a mesh", || {
        ensure!(outside(first, 30081).is_err(), "answered");
        Ok(())
    });
    table.row("a load balancer's address, from a pod outside the mesh: natively", || {
        let plain = view.arrived("cart", "unknown")?;
        let said = view.ask(&view.outside, &format!("{BALANCER}:80"))?;
        ensure!(said.starts_with("cart("), "{said}");
        within(DEADLINE, "it is counted as plaintext", || {
            ensure!(view.arrived("cart", "unknown")? > plain, "{plain} as before");
            Ok(())
        })
    });
}

/// The same under STRICT.
fn refused(view: &View, table: &mut Rows) {
    let [first, second] = &view.nodes;
    let closed = |host: &str, port: u16| match outside(host, port) {
        Ok(said) => anyhow::bail!("answered: {said}"),
        // Refused by the pod's node, not lost on the way.
        Err(error) => {
            let error = format!("{error:#}");
            ensure!(!error.contains("timed out") && !error.contains("Timeout"), "{error}");
            Ok(())
        }
    };
    table.row("STRICT: hostPort is refused", || closed(second, 18080));
    table.row("STRICT: NodePort with Cluster is refused", || closed(first, 30080));
    table.row("STRICT: NodePort with Local is refused", || closed(second, 30081));
    table
        .row("STRICT: NodePort with Cluster through the pod's own node is refused", || closed(second, 30080));
    table.row("STRICT: the same to a probe port is refused, although it has the node's address", || {
        closed(second, 30082)
    });
    table.row("STRICT: the same to a probe port with Local is refused", || closed(second, 30083));
    table.row("STRICT: NodePort with Cluster to a probe port through another node is refused", || {
        closed(first, 30082)
    });
}

/// Addresses of services, from pods of the mesh.
fn within_the_mesh(view: &View, table: &mut Rows) {
    let client = format!("cart({})", view.client.address);
    let rows = [
        ("a cluster address by name", "cart.shop:80".to_owned()),
        ("a load balancer's address", format!("{BALANCER}:80")),
        ("an external IP", format!("{EXTERNAL}:80")),
        ("a headless service", "headless.shop:8080".to_owned()),
        ("an ExternalName", "alias.shop:80".to_owned()),
        ("a pod's address", view.cart.target(8080)),
    ];
    for (name, target) in rows {
        table.row(&format!("{name}: in mutual TLS"), || {
            is(&view.in_tls(&view.client, &target, "cart")?, &client)
        });
    }
    table.row("dual stack, a v6 cluster address: in mutual TLS, from the client's v6 address", || {
        let service = view.mesh.get(&["service", "-n", "shop", "dual"])?;
        let addresses = service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
        let mut addresses = addresses.iter().filter_map(|address| address.as_str());
        let v6 = addresses.find(|address| address.contains(':')).context("no v6 address")?;
        let pod = view.mesh.get(&["pod", "-n", "shop", &view.client.name])?;
        let own = pod["status"]["podIPs"].as_array().cloned().unwrap_or_default();
        let own = own.iter().filter_map(|it| it["ip"].as_str()).find(|address| address.contains(':'));
        let said = view.in_tls(&view.client, &format!("[{v6}]:80"), "cart")?;
        is(&said, &format!("cart({})", own.context("the client has no v6 address")?))
    });
    table
        .row("a node's address (NodePort) from a pod of the mesh: natively, so refused under STRICT", || {
            view.mesh.unanswered(&view.client, &format!("{}:30080", view.nodes[0]))
        });
    table.row("a port that the service does not have: refused", || {
        view.mesh.unanswered(&view.client, "cart.shop:81")
    });
}

/// Which endpoints are chosen.
fn endpoints(view: &View, table: &mut Rows) {
    let who = |from: &Pod, target: &str| -> Result<Vec<String>> {
        let said = view.mesh.said(from, target, MANY)?;
        Ok(said.iter().filter_map(|said| said.split('(').next().map(str::to_owned)).collect())
    };
    let both = |target: &str| {
        within(DEADLINE, "both", || {
            let names = who(&view.client, target)?;
            ensure!(names == ["far", "near"], "{names:?}");
            Ok(())
        })
    };
    // Each client's own, and no other.
    let each = |target: &str| {
        within(DEADLINE, "each answers", || {
            let names = [who(&view.client, target)?, who(&view.neighbour, target)?];
            ensure!(names == [["near"], ["far"]], "{names:?}");
            Ok(())
        })
    };
    table.row("two endpoints: both answer", || both("both.shop:80"));
    table.row("internalTrafficPolicy Local: each node's own answers, and no other", || each("local.shop:80"));
    table.row("internalTrafficPolicy Local: refused where the node has none", || {
        is(&view.who(&view.neighbour, "far-only.shop:80")?, "far")?;
        view.mesh.unanswered(&view.client, "far-only.shop:80")
    });
    table.row("trafficDistribution PreferClose: the zone's own", || each("close.shop:80"));
    table.row("sessionAffinity ClientIP: always the same", || {
        let names = who(&view.client, "sticky.shop:80")?;
        ensure!(names.len() == 1, "{names:?}");
        Ok(())
    });
    table.row("a named target port: each pod's own", || both("named.shop:80"));
    table.row("a pod that is not ready: chosen with publishNotReadyAddresses", || {
        within(DEADLINE, "it runs, in the mesh", || is(&view.who(&view.client, "published.shop:80")?, "late"))
    });
    table.row("a pod that is not ready: not chosen without", || {
        view.mesh.unanswered(&view.client, "unpublished.shop:80")
    });
}

/// Prometheus and pods under STRICT.
fn scrapes(view: &View, table: &mut Rows) {
    let metrics = view.cart.target(9102);
    table.row("a scrape of a STRICT pod from a pod of the mesh: in mutual TLS", || {
        let said = view.in_tls(&view.prometheus, &metrics, "cart")?;
        is(&said, &format!("metrics({})", view.prometheus.address))
    });
    table.row("a scrape of a STRICT pod from outside the mesh: refused", || {
        view.mesh.unanswered(&view.outside, &metrics)
    });
    table.row("with the port PERMISSIVE it passes, and nothing else does", || {
        view.mesh.cluster.apply(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: metrics, \
             namespace: shop}\nspec: {selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}, \
             portLevelMtls: {'9102': {mode: PERMISSIVE}}}\n",
        )?;
        let before = view.arrived("cart", "unknown")?;
        let said = within(DEADLINE, "it is answered", || view.ask(&view.outside, &metrics))?;
        is(&said, &format!("metrics({})", view.outside.address))?;
        // Else it would be counted while the next is looked at.
        within(DEADLINE, "it is counted", || {
            ensure!(view.arrived("cart", "unknown")? > before, "{before} as before");
            Ok(())
        })?;
        view.mesh.unanswered(&view.outside, &view.cart.target(8080))?;
        view.in_tls(&view.prometheus, &metrics, "cart").map(drop)
    });
}
