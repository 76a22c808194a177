//! Rights on a real Kubernetes: which token gets which identity, and what each component may ask of the API
//! server.

use std::time::Duration;

use ambit_suites::Rows;
use ambit_suites::kubernetes::manifests::shop;
use ambit_suites::kubernetes::{Mesh, Pod, Running, SYSTEM, run, workspace};
use anyhow::{Context, Result, bail, ensure};

#[test]
fn tokens_and_rights_are_limited_to_their_node() -> Result<()> {
    let mesh = Mesh::up("tokens")?;
    mesh.cluster.apply(&shop("shop"))?;
    mesh.rolled_out("shop", &["deployment/client", "deployment/cart"])?;
    let mut table = Rows::new();
    table.row("the plain manifests are what the chart renders", || rendered(&mesh));
    certificates(&mesh, &mut table)?;
    rights(&mesh, &mut table);
    table.finish();
    mesh.cluster.down()
}

/// `deploy/ambit.yaml` behind its head.
fn rendered(mesh: &Mesh) -> Result<()> {
    let chart = workspace().join("deploy/chart");
    let chart = chart.to_str().context("a path in UTF-8")?;
    let arguments =
        ["template", "ambit", chart, "--no-hooks", "--namespace", SYSTEM, "--kube-version", "1.34.2"];
    let now = run(&mut mesh.cluster.helm(&arguments))?;
    let file = std::fs::read_to_string(workspace().join("deploy/ambit.yaml"))?;
    ensure!(
        file.ends_with(&now),
        "deploy/ambit.yaml is not what `helm template` says now: render it again as its first lines say"
    );
    Ok(())
}

/// Which token gets which identity.
fn certificates(mesh: &Mesh, table: &mut Rows) -> Result<()> {
    let (controller, _forward) = forwarded(mesh)?;
    let root =
        mesh.kubectl(&["-n", SYSTEM, "get", "configmap", "ambit-root", "-o", "jsonpath={.data.root\\.pem}"])?;
    let daemon = |node| mesh.pod(SYSTEM, "app.kubernetes.io/name=ztunnel", Some(node));
    let bound = |pod: &Pod, account: &str, audience: &str| {
        mesh.kubectl(&[
            "-n",
            &pod.namespace,
            "create",
            "token",
            account,
            "--audience",
            audience,
            "--bound-object-kind",
            "Pod",
            "--bound-object-name",
            &pod.name,
        ])
    };
    let (first, second) = (daemon("node1")?, daemon("node2")?);
    let client = mesh.pod("shop", "app=client", None)?;
    let own = "spiffe://cluster.local/ns/shop/sa/client";
    let others = "spiffe://cluster.local/ns/shop/sa/cart";
    let rows = [
        ("node1's daemon, a pod of node1", bound(&first, "ztunnel", "ambit-ca")?, own, true),
        ("node2's daemon, a pod of node2", bound(&second, "ztunnel", "ambit-ca")?, others, true),
        ("node1's daemon, a pod of node2", bound(&first, "ztunnel", "ambit-ca")?, others, false),
        ("node2's daemon, a pod of node1", bound(&second, "ztunnel", "ambit-ca")?, own, false),
        (
            "node1's daemon, an identity without a pod",
            bound(&first, "ztunnel", "ambit-ca")?,
            "spiffe://cluster.local/ns/shop/sa/unused",
            false,
        ),
        ("a daemon's token for another audience", bound(&first, "ztunnel", "elsewhere")?, own, false),
        (
            "a daemon's token that no pod is bound to",
            mesh.kubectl(&["-n", SYSTEM, "create", "token", "ztunnel", "--audience", "ambit-ca"])?,
            own,
            false,
        ),
        ("a pod's own token for its own identity", bound(&client, "client", "ambit-ca")?, own, false),
        ("a pod's usual token", mesh.kubectl(&["-n", "shop", "create", "token", "client"])?, own, false),
        ("a token that was never issued", "aGVsbG8.aGVsbG8.aGVsbG8".to_owned(), own, false),
    ];
    for (name, token, identity, good) in rows {
        table.row(name, || {
            let answer = certificate(&controller, &root, token.trim(), identity)?;
            match answer {
                Ok(chain) if good => ensure!(chain >= 2, "a chain of {chain}"),
                Ok(_) => bail!("a certificate was given"),
                Err(said) if good => bail!("no certificate: {said}"),
                Err(said) => ensure!(
                    said.contains("PermissionDenied")
                        || said.contains("Unauthenticated")
                        || said.contains("permission")
                        || said.contains("authentic"),
                    "refused for another reason: {said}"
                ),
            }
            Ok(())
        });
    }
    Ok(())
}

/// The controller's port on this host.
fn forwarded(mesh: &Mesh) -> Result<(String, Running)> {
    let arguments = ["-n", SYSTEM, "port-forward", "service/ambit-controller", ":15012"];
    let mut forward = Running::begin(mesh.cluster.kubectl(&arguments))?;
    let line = forward.line()?;
    let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).context("no port")?;
    Ok((format!("127.0.0.1:{port}"), forward))
}

/// Asks the CA as a daemon does: how many certificates came, or its error.
fn certificate(controller: &str, root: &str, token: &str, identity: &str) -> Result<Result<usize, String>> {
    let connection = ambit_xds::client::Connection {
        endpoint: format!("https://{controller}"),
        server_name: format!("ambit-controller.{SYSTEM}.svc"),
        root_pem: root.to_owned(),
        token: token.to_owned(),
        node: "node1".to_owned(),
    };
    let identity = identity.parse()?;
    let key = rcgen::KeyPair::generate()?;
    let csr = rcgen::CertificateParams::default().serialize_request(&key)?.pem()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = ambit_xds::ca::Client::new(connection)?;
        let answer = client.create_certificate(&csr, &identity, Duration::from_hours(1)).await;
        Ok(answer.map(|chain| chain.len()).map_err(|error| format!("{:#}", anyhow::Error::from(error))))
    })
}

/// What each component may do at the API server, and what it may not.
fn rights(mesh: &Mesh, table: &mut Rows) {
    let rows = [
        ("ambit-controller", "list pods -A", true),
        ("ambit-controller", "watch endpointslices.discovery.k8s.io -A", true),
        ("ambit-controller", "patch authorizationpolicies.security.istio.io --subresource=status -A", true),
        ("ambit-controller", "create tokenreviews.authentication.k8s.io", true),
        ("ambit-controller", "update secrets/ambit-ca -n ambit-system", true),
        ("ambit-controller", "patch nodes", true),
        ("ambit-controller", "get secrets -A", false),
        ("ambit-controller", "get secrets/other -n ambit-system", false),
        ("ambit-controller", "update authorizationpolicies.security.istio.io -A", false),
        ("ambit-controller", "delete pods -A", false),
        ("ambit-controller", "patch pods --subresource=status -A", false),
        ("ambit-controller", "create pods -A", false),
        ("ztunnel", "list pods -A", true),
        ("ztunnel", "patch pods --subresource=status -A", true),
        ("ztunnel", "watch daemonsets.apps/ztunnel -n ambit-system", true),
        ("ztunnel", "create serviceaccounts/ambit-cni --subresource=token -n ambit-system", true),
        ("ztunnel", "create serviceaccounts/ambit-controller --subresource=token -n ambit-system", false),
        ("ztunnel", "create serviceaccounts --subresource=token -n shop", false),
        ("ztunnel", "patch pods -A", false),
        ("ztunnel", "patch nodes", false),
        ("ztunnel", "get secrets -n ambit-system", false),
        ("ztunnel", "create tokenreviews.authentication.k8s.io", false),
        ("ambit-cni", "get pods -A", true),
        ("ambit-cni", "get namespaces", true),
        ("ambit-cni", "patch pods --subresource=status -A", true),
        ("ambit-cni", "list pods -A", false),
        ("ambit-cni", "get secrets -A", false),
        ("ambit-cni", "create serviceaccounts --subresource=token -n ambit-system", false),
    ];
    for (account, question, allowed) in rows {
        table.row(&format!("{account}: {question}"), || {
            let user = format!("--as=system:serviceaccount:{SYSTEM}:{account}");
            let words: Vec<&str> = ["auth", "can-i", &user].into_iter().chain(question.split(' ')).collect();
            // It ends with an error where the answer is no.
            let output = mesh.cluster.kubectl(&words).output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(
                said.trim() == if allowed { "yes" } else { "no" },
                "{said}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            Ok(())
        });
    }
    table.row("ztunnel of node1 may not annotate a pod of node2", || {
        let daemon = mesh.pod(SYSTEM, "app.kubernetes.io/name=ztunnel", Some("node1"))?;
        let token = mesh.kubectl(&[
            "-n",
            SYSTEM,
            "create",
            "token",
            "ztunnel",
            "--bound-object-kind",
            "Pod",
            "--bound-object-name",
            &daemon.name,
        ])?;
        let patch = r#"{"metadata":{"annotations":{"tests/by":"node1"}}}"#;
        let annotate = |pod: &Pod| {
            mesh.patch(token.trim(), &format!("/api/v1/namespaces/shop/pods/{}/status", pod.name), patch)
        };
        annotate(&mesh.pod("shop", "app=client", None)?).context("a pod of its own node")?;
        let refused = annotate(&mesh.pod("shop", "app=cart", None)?);
        let said = format!("{:#}", refused.err().context("it was allowed")?);
        ensure!(said.contains("own node only"), "refused for another reason: {said}");
        Ok(())
    });
}
