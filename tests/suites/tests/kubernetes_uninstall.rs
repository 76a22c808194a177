//! All controllers gone for a while, and Ambit gone for good: nothing is left on the nodes and in the API.

use ambit_harness::within;
use ambit_suites::Rows;
use ambit_suites::kubernetes::manifests::{shop, strict};
use ambit_suites::kubernetes::remains::Remains;
use ambit_suites::kubernetes::{ANNOTATION, DEADLINE, ENROLLED, Mesh, SYSTEM, run, workspace};
use anyhow::{Context, Result, ensure};

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
    mesh.install(&[])?;
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
