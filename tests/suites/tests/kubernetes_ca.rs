//! Nodes that begin with the startup taint, a CA of the user's own, and another root under traffic, on a real
//! Kubernetes.

use std::path::{Path, PathBuf};
use std::process::Command;

use ambit_harness::within;
use ambit_suites::Rows;
use ambit_suites::kubernetes::manifests::{deployment, service, shop, strict};
use ambit_suites::kubernetes::{DEADLINE, ENROLLED, Mesh, Pod, SYSTEM, node_netns, run};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const TAINT: &str = "ambit.dev/not-ready";
/// Certificates are renewed at half of it: every one is another within the test.
const LIFETIME: &str = "60";
/// Kubelets bring a ConfigMap to its pods within ten seconds or so here.
const TRUST_WAIT: &str = "45";

#[test]
fn startup_taint_custom_ca_and_rotation() -> Result<()> {
    let mesh = Mesh::prepare_tainted("ca", &[&format!("{TAINT}:NoSchedule")])?;
    let folder = tempfile::tempdir()?;
    let (first, second) = (Ca::make(folder.path(), "first")?, Ca::make(folder.path(), "second")?);
    mesh.kubectl(&["create", "namespace", SYSTEM])?;
    bring(&mesh, &first)?;

    let mut table = Rows::new();
    startup_taint(&mesh, &mut table);
    mesh.rolled_out(SYSTEM, &["deployment/ambit-controller", "daemonset/ztunnel"])?;
    // Both nodes serve this one: pairs of one node take the direct path.
    mesh.cluster.apply(&(deployment("shop", "both", 4, "") + &service("shop", "both")))?;
    mesh.kubectl(&["label", "namespace", "shop", ENROLLED])?;
    mesh.cluster.apply(&strict("shop"))?;
    mesh.rolled_out("shop", &["deployment/client", "deployment/cart", "deployment/both"])?;
    mesh.enrolled("shop", true)?;
    let pods = [mesh.pod("shop", "app=client", None)?, mesh.pod("shop", "app=cart", None)?];
    table.row("pods' certificates are of the user's own CA", || {
        within(DEADLINE, "requests are answered", || mesh.ask(&pods[0], "cart.shop:80"))?;
        ensure!(bundle(&mesh)? == first.root()?, "daemons trust {}", bundle(&mesh)?);
        vouched(&mesh, &pods, &first)
    });
    table.row("another CA of the user's while traffic goes on: no connection fails", || {
        under_load(&mesh, &pods[0], || replaced(&mesh, &pods, &first, &second))
    });
    table.row("daemons that begin after it go on", || {
        mesh.kubectl(&["-n", SYSTEM, "rollout", "restart", "daemonset/ztunnel"])?;
        mesh.rolled_out(SYSTEM, &["daemonset/ztunnel"])?;
        within(DEADLINE, "requests are answered", || mesh.ask(&pods[0], "cart.shop:80"))?;
        vouched(&mesh, &pods, &second)
    });
    table.row(
        "a root that Ambit makes when it is asked to, while traffic goes on: no connection fails",
        || under_load(&mesh, &pods[0], || made(&mesh, &pods, folder.path(), &second)),
    );
    table.finish();
    mesh.cluster.down()
}

/// Node by node: the second one's daemon cannot start at first.
fn startup_taint(mesh: &Mesh, table: &mut Rows) {
    table.row("pods do not start on a node with the startup taint", || {
        mesh.cluster.apply(&shop("shop"))?;
        within(DEADLINE, "the scheduler has seen them", || {
            for name in ["client", "cart"] {
                let pods = mesh.pods("shop", &format!("app={name}"))?;
                let pod = pods.first().context("no pod")?;
                let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
                ensure!(
                    conditions.iter().any(|it| it["reason"] == "Unschedulable"),
                    "{name}: {}",
                    pod["status"]
                );
            }
            Ok(())
        })
    });
    table.row("the taint goes from the node whose daemon is ready", || {
        let image = format!("docker.io/ambit/ztunnel:{}", env!("CARGO_PKG_VERSION"));
        run(&mut mesh.node("node2")?.ctr(&["images", "remove", "--sync", &image]))?;
        let lifetime = format!("ztunnel.certificateTtlSeconds={LIFETIME}");
        let wait = format!("controller.rootPropagationSeconds={TRUST_WAIT}");
        mesh.upgrade(&[&lifetime, &wait], &[])?;
        within(DEADLINE, "it is gone from node1", || {
            ensure!(!tainted(mesh, "node1")?, "it is there");
            Ok(())
        })?;
        mesh.rolled_out("shop", &["deployment/client"])
    });
    table.row("and not from the node whose daemon is there and not ready", || {
        within(DEADLINE, "the daemon of node2 waits for its image", || {
            let pods = mesh.pods(SYSTEM, "app.kubernetes.io/name=ztunnel")?;
            let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == "node2").context("no pod")?;
            let containers = pod["status"]["containerStatuses"].as_array().context("no containers")?;
            let daemon = containers.iter().find(|it| it["name"] == "ztunnel").context("no ztunnel")?;
            let waits = daemon["state"]["waiting"]["reason"].as_str();
            ensure!(waits.is_some_and(|why| why.contains("Image")), "{waits:?}");
            Ok(())
        })?;
        ensure!(tainted(mesh, "node2")?, "the taint is gone");
        ensure!(
            mesh.pods("shop", "app=cart")?.iter().all(|pod| pod["spec"]["nodeName"].is_null()),
            "cart runs"
        );
        Ok(())
    });
    table.row("it goes when that is ready, and pods start there", || {
        mesh.load("ztunnel")?;
        within(DEADLINE, "it is gone from node2", || {
            let ready = daemon_ready(mesh, "node2")?;
            ensure!(!tainted(mesh, "node2")?, "it is there; the daemon is ready: {ready}");
            Ok(())
        })?;
        ensure!(daemon_ready(mesh, "node2")?, "the taint is gone, and the daemon is not ready");
        mesh.rolled_out("shop", &["deployment/cart"])
    });
}

fn tainted(mesh: &Mesh, node: &str) -> Result<bool> {
    let node = mesh.get(&["node", node])?;
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    Ok(taints.iter().any(|taint| taint["key"] == TAINT))
}

fn daemon_ready(mesh: &Mesh, node: &str) -> Result<bool> {
    let ready = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
    };
    let pods = mesh.pods(SYSTEM, "app.kubernetes.io/name=ztunnel")?;
    Ok(pods.iter().any(|pod| pod["spec"]["nodeName"] == node && ready(pod)))
}

/// The user replaces the CA.
fn replaced(mesh: &Mesh, pods: &[Pod; 2], old: &Ca, new: &Ca) -> Result<()> {
    bring(mesh, new)?;
    within(DEADLINE, "both are trusted", || {
        let bundle = bundle(mesh)?;
        ensure!(bundle.contains(&old.root()?) && bundle.contains(&new.root()?), "{bundle}");
        Ok(())
    })?;
    taken_over(mesh, pods, old, new)
}

/// The user's CA is removed, and Ambit is asked to create one.
fn made(mesh: &Mesh, pods: &[Pod; 2], folder: &Path, old: &Ca) -> Result<()> {
    mesh.kubectl(&["-n", SYSTEM, "delete", "secret", "cacerts"])?;
    let before = bundle(mesh)?;
    mesh.kubectl(&["-n", SYSTEM, "annotate", "secret", "ambit-ca", "ambit.dev/rotate-root=now"])?;
    let blocks = |text: &str| {
        let blocks = text.split_inclusive("-----END CERTIFICATE-----\n");
        blocks.map(str::to_owned).collect::<Vec<_>>()
    };
    let new = within(DEADLINE, "a new root is trusted", || {
        let now = blocks(&bundle(mesh)?);
        now.into_iter().find(|root| !before.contains(root.as_str())).context("none")
    })?;
    taken_over(mesh, pods, old, &Ca::published(folder, "made", &new)?)
}

/// From trusted to signing.
fn taken_over(mesh: &Mesh, pods: &[Pod; 2], old: &Ca, new: &Ca) -> Result<()> {
    vouched(mesh, pods, old).context("before the new root signs")?;
    within(DEADLINE, "all certificates are of the new root", || vouched(mesh, pods, new))?;
    let bundle = bundle(mesh)?;
    ensure!(bundle.contains(&old.root()?), "the old root has gone while certificates of it may be valid");
    mesh.ask(&pods[0], "cart.shop:80")
}

/// New connections all the time, in tunnels and between pods of one node: none fails.
fn under_load(mesh: &Mesh, client: &Pod, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let load = |target: &str| {
        let words = ["/ambit-load", target, "--rate", "20", "--until", "/tmp/stop", "--timeout", "20"];
        mesh.start_on_node(client, &words)
    };
    let loads = [load("cart.shop:80")?, load("both.shop:80")?];
    let worked = work();
    mesh.exec(client, &["/ambit-load", "--touch", "/tmp/stop"])?;
    let mut reports = Vec::new();
    for load in loads {
        let report = load.finish()?;
        println!("root replaced: {report}");
        reports.push(report);
    }
    worked?;
    for report in reports {
        ensure!(report["failed"] == 0 && report["answered"].as_u64() > Some(100), "{report}");
    }
    mesh.exec(client, &["/ambit-load", "--untouch", "/tmp/stop"]).map(drop)
}

/// What daemons trust.
fn bundle(mesh: &Mesh) -> Result<String> {
    mesh.kubectl(&["-n", SYSTEM, "get", "configmap", "ambit-root", "-o", "jsonpath={.data.root\\.pem}"])
}

/// Whether the certificates that pods present are of this CA.
fn vouched(mesh: &Mesh, pods: &[Pod], ca: &Ca) -> Result<()> {
    for pod in pods {
        let network = node_netns(mesh.node(&pod.node)?)?;
        let target = format!("{}:15008", pod.address);
        let mut asked = network.command("openssl");
        asked.args(["s_client", "-connect", &target, "-alpn", "h2", "-CAfile"]).arg(ca.file("root-cert.pem"));
        // It presents no certificate, so it is refused; the certificate that it was shown counts.
        let said = asked.stdin(std::process::Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&said.stdout);
        ensure!(said.contains("BEGIN CERTIFICATE"), "{} shows none: {said}", pod.name);
        ensure!(said.contains("Verify return code: 0 (ok)"), "{}: {said}", pod.name);
    }
    Ok(())
}

/// A CA as users make them with openssl, under Istio's names.
struct Ca {
    folder: PathBuf,
}

impl Ca {
    fn make(folder: &Path, name: &str) -> Result<Self> {
        let ca = Self { folder: folder.join(name) };
        std::fs::create_dir(&ca.folder)?;
        let extensions = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n\
                          subjectAltName=DNS:ca.example.org\n";
        std::fs::write(ca.file("extensions"), extensions)?;
        let root = format!("/O=Example/CN=Root {name}");
        let intermediate = format!("/O=Example/CN=Intermediate {name}");
        let commands: [&[&str]; 3] = [
            &[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "30",
                "-subj",
                &root,
                "-keyout",
                "root-key.pem",
                "-out",
                "root-cert.pem",
                "-addext",
                "keyUsage=critical,keyCertSign,cRLSign",
            ],
            &[
                "req",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-subj",
                &intermediate,
                "-keyout",
                "ca-key.pem",
                "-out",
                "ca.csr",
            ],
            &[
                "x509",
                "-req",
                "-in",
                "ca.csr",
                "-CA",
                "root-cert.pem",
                "-CAkey",
                "root-key.pem",
                "-CAcreateserial",
                "-days",
                "20",
                "-extfile",
                "extensions",
                "-out",
                "ca-cert.pem",
            ],
        ];
        for words in commands {
            run(Command::new("openssl").current_dir(&ca.folder).args(words))?;
        }
        let chain = std::fs::read_to_string(ca.file("ca-cert.pem"))? + &ca.root()?;
        std::fs::write(ca.file("cert-chain.pem"), chain)?;
        Ok(ca)
    }

    /// One of which only the root is known.
    fn published(folder: &Path, name: &str, root: &str) -> Result<Self> {
        let ca = Self { folder: folder.join(name) };
        std::fs::create_dir(&ca.folder)?;
        std::fs::write(ca.file("root-cert.pem"), root)?;
        Ok(ca)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn root(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.file("root-cert.pem"))?)
    }
}

/// Puts a CA where users put theirs.
fn bring(mesh: &Mesh, ca: &Ca) -> Result<()> {
    let files = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"]
        .map(|name| format!("--from-file={}", ca.file(name).display()));
    let mut arguments =
        vec!["-n", SYSTEM, "create", "secret", "generic", "cacerts", "--dry-run=client", "-o", "yaml"];
    arguments.extend(files.iter().map(String::as_str));
    mesh.cluster.apply(&mesh.kubectl(&arguments)?)
}
