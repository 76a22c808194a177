//! All controllers gone for a while, a node that leaves and returns, a DaemonSet that is made again, and
//! Ambit gone for good: nothing is left on the nodes and in the API.

use ambit_harness::within;
use ambit_suites::Rows;
use ambit_suites::kubernetes::manifests::{deployment, shop, strict};
use ambit_suites::kubernetes::remains::Remains;
use ambit_suites::kubernetes::{ANNOTATION, DEADLINE, ENROLLED, Mesh, Pod, SYSTEM, run, workspace};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The label of nodes that have a ztunnel.
const COVERED: &str = "tests/mesh=on";

#[test]
fn mesh_survives_controller_loss_and_uninstalls_cleanly() -> Result<()> {
    let mesh = Mesh::prepare("uninstall")?;
    mesh.cluster.apply(&shop("shop"))?;
    mesh.rolled_out("shop", &["deployment/client", "deployment/cart"])?;
    // A pod without a node: no agent sees it, as on a node that is off.
    mesh.cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: unseen, namespace: shop}\nspec: {nodeSelector: \
         {tests/node: none}, containers: [{name: shop, image: docker.io/ambit/tests:0.1.0}]}\n",
    )?;
    mesh.kubectl(&["create", "namespace", SYSTEM])?;
    mesh.kubectl(&["label", "namespace", "shop", ENROLLED])?;
    within(DEADLINE, "the namespace has what every namespace has", || {
        mesh.kubectl(&["-n", SYSTEM, "get", "serviceaccount/default", "configmap/kube-root-ca.crt"])
    })?;
    let before = Remains::of(&mesh)?;
    mesh.kubectl(&["label", "nodes", "--all", COVERED])?;
    mesh.install(&["ztunnel.nodeSelector.tests/mesh=on"])?;
    mesh.enrolled("shop", true)?;
    mesh.cluster.apply(&strict("shop"))?;
    let client = mesh.pod("shop", "app=client", None)?;

    let mut table = Rows::new();
    table.row("no request fails while there is no controller", || {
        let load =
            mesh.start(&client, &["/ambit-load", "cart.shop:80", "--rate", "40", "--until", "/tmp/stop"])?;
        mesh.kubectl(&["-n", SYSTEM, "scale", "deployment/ambit-controller", "--replicas=0"])?;
        within(DEADLINE, "all controllers are gone", || {
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
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny-all, \
             namespace: shop}\nspec: {selector: {matchLabels: {app: cart}}, action: ALLOW, rules: [{from: \
             [{source: {namespaces: [elsewhere]}}]}]}\n",
        )?;
        within(DEADLINE, "requests are refused", || {
            ensure!(mesh.ask(&client, "cart.shop:80").is_err(), "answered");
            Ok(())
        })?;
        within(DEADLINE, "its status says that it is in force", || {
            let policy = mesh.get(&["authorizationpolicies.security.istio.io", "-n", "shop", "deny-all"])?;
            let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
            ensure!(conditions.iter().any(|condition| condition["status"] == "True"), "{}", policy["status"]);
            Ok(())
        })?;
        mesh.kubectl(&["-n", "shop", "delete", "authorizationpolicies.security.istio.io", "deny-all"])?;
        within(DEADLINE, "requests are answered again", || mesh.ask(&client, "cart.shop:80"))
    });
    table.row("a node that leaves the DaemonSet starts pods outside the mesh", || leaves(&mesh));
    table.row("a DaemonSet that is made again keeps its installation", || made_again(&mesh, &client));
    table.row("uninstalled by Helm, nothing is left on the nodes and in the API", || {
        // As the agent annotates it.
        let annotation = format!("{ANNOTATION}=enabled");
        mesh.kubectl(&["-n", "shop", "annotate", "--field-manager=ambit", "pod", "unseen", &annotation])?;
        // What users wrote stays with the definitions.
        mesh.kubectl(&["-n", "shop", "delete", "peerauthentications.security.istio.io", "default"])?;
        let arguments = ["uninstall", "ambit", "--namespace", SYSTEM, "--wait", "--timeout", "3m"];
        run(&mut mesh.cluster.helm(&arguments))?;
        before.are_back(&mesh)?;
        mesh.ask(&client, "cart.shop:80").context("plain traffic afterwards")
    });
    table.row("the same without Helm", || {
        let [crds, rest] = ["deploy/crds", "deploy/ambit.yaml"].map(|path| workspace().join(path));
        let (crds, rest) = (crds.display().to_string(), rest.display().to_string());
        mesh.kubectl(&["apply", "--server-side", "-f", &crds, "-f", &rest])?;
        mesh.rolled_out(SYSTEM, &["deployment/ambit-controller", "daemonset/ztunnel"])?;
        mesh.enrolled("shop", true)?;
        mesh.kubectl(&["-n", SYSTEM, "delete", "daemonset", "ztunnel", "--cascade=foreground"])?;
        mesh.kubectl(&["delete", "--ignore-not-found", "-f", &rest])?;
        mesh.kubectl(&["create", "namespace", SYSTEM])?;
        before.are_back(&mesh)?;
        mesh.ask(&client, "cart.shop:80").context("plain traffic afterwards")
    });
    table.finish();
    mesh.cluster.down()
}

/// Whether the runtime of a node calls the CNI plugin.
fn is_chained(mesh: &Mesh, node: &str) -> Result<bool> {
    Ok(run(&mut mesh.node(node)?.run("bash", &["-c", "cat /etc/cni/net.d/*"]))?.contains("ambit-cni"))
}

/// The ztunnel pods of a node, also those that are ending.
fn daemons(mesh: &Mesh, node: &str) -> Result<Vec<Value>> {
    let all = mesh.pods(SYSTEM, "app.kubernetes.io/name=ztunnel")?;
    Ok(all.into_iter().filter(|pod| pod["spec"]["nodeName"] == node).collect())
}

fn leaves(mesh: &Mesh) -> Result<()> {
    mesh.kubectl(&["label", "node", "node2", "tests/mesh-"])?;
    within(DEADLINE, "the node's daemon is gone", || {
        let left = daemons(mesh, "node2")?.len();
        ensure!(left == 0, "{left} are there");
        Ok(())
    })?;
    ensure!(!is_chained(mesh, "node2")?, "the CNI entry is left");
    mesh.cluster.apply(&deployment("shop", "visitor", 1, "node2"))?;
    mesh.rolled_out("shop", &["deployment/visitor"])?;
    for app in ["app=visitor", "app=cart"] {
        let pods = mesh.pods("shop", app)?;
        let annotated = pods.iter().any(|pod| pod["metadata"]["annotations"][ANNOTATION].is_string());
        ensure!(!pods.is_empty() && !annotated, "{app}: {pods:?}");
    }
    mesh.kubectl(&["-n", "shop", "delete", "deployment/visitor", "serviceaccount/visitor"])?;
    mesh.kubectl(&["label", "node", "node2", COVERED])?;
    mesh.rolled_out(SYSTEM, &["daemonset/ztunnel"])?;
    mesh.enrolled("shop", true)?;
    ensure!(is_chained(mesh, "node2")?, "no CNI entry after the node's return");
    Ok(())
}

fn made_again(mesh: &Mesh, client: &Pod) -> Result<()> {
    let mut object = mesh.get(&["daemonset", "-n", SYSTEM, "ztunnel"])?;
    let first = object["metadata"]["uid"].clone();
    object.as_object_mut().context("no object")?.remove("status");
    for field in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
        object["metadata"].as_object_mut().context("no metadata")?.remove(field);
    }
    mesh.kubectl(&["-n", SYSTEM, "delete", "daemonset", "ztunnel"])?;
    mesh.cluster.apply(&object.to_string())?;
    mesh.rolled_out(SYSTEM, &["daemonset/ztunnel"])?;
    for node in ["node1", "node2"] {
        within(DEADLINE, "the former daemons have ended", || {
            let pods = daemons(mesh, node)?;
            let old = pods.iter().filter(|pod| pod["metadata"]["ownerReferences"][0]["uid"] == first).count();
            ensure!(old == 0 && pods.len() == 1, "{old} of {} are old", pods.len());
            Ok(())
        })?;
        ensure!(is_chained(mesh, node)?, "{node} has no CNI entry");
        let left = run(&mut mesh.node(node)?.run("ls", &["/run/ambit", "/sys/fs/bpf/ambit"]))?;
        ensure!(left.contains("enrol.sock") && left.contains("agent.sock"), "{node} has only {left}");
    }
    mesh.enrolled("shop", true)?;
    within(DEADLINE, "requests are answered under STRICT", || mesh.ask(client, "cart.shop:80"))
}
