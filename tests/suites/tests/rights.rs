//! Rights on a real Kubernetes: which token gets which identity, and what each of Ambit's accounts may do at
//! the API server, to pods of its own node and of another.

use ambit_harness::within;
use ambit_suites::Rows;
use ambit_suites::kubernetes::api::{Api, Fate, fares};
use ambit_suites::kubernetes::ca::{Ca, carries};
use ambit_suites::kubernetes::manifests::shop;
use ambit_suites::kubernetes::{DEADLINE, ENROLLED, Mesh, Pod, SYSTEM, run, workspace};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

#[test]
fn credentials_are_limited_to_their_node() -> Result<()> {
    let mesh = Mesh::up("rights")?;
    mesh.cluster.apply(&shop("shop"))?;
    mesh.kubectl(&["label", "namespace", "shop", ENROLLED])?;
    mesh.rolled_out("shop", &["deployment/client", "deployment/cart"])?;
    mesh.enrolled("shop", true)?;
    let mut table = Rows::new();
    table.row("the plain manifests are what the chart renders", || rendered(&mesh));
    certificates(&mesh, &mut table)?;
    table.row("the plugin's credential ends with its node", || credential(&mesh));
    rights(&mesh, &mut table);
    matrix(&mesh, &mut table)?;
    table.row("a static pod of a labelled namespace gets no identity", || static_pod(&mesh));
    table.row("a credential that is refused is renewed", || renewed(&mesh));
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

/// A token of a service account that is bound to a pod.
fn bound(mesh: &Mesh, pod: &Pod, account: &str, audience: &str) -> Result<String> {
    let mut words = vec!["-n", &pod.namespace, "create", "token", account];
    words.extend(["--bound-object-kind", "Pod", "--bound-object-name", &pod.name]);
    if !audience.is_empty() {
        words.extend(["--audience", audience]);
    }
    Ok(mesh.kubectl(&words)?.trim().to_owned())
}

fn daemon(mesh: &Mesh, node: &str) -> Result<Pod> {
    mesh.pod(SYSTEM, "app.kubernetes.io/name=ztunnel", Some(node))
}

/// Which token gets which identity: the one it names, or its own where it names none.
fn certificates(mesh: &Mesh, table: &mut Rows) -> Result<()> {
    let (ca, _forward) = Ca::forwarded(mesh)?;
    let (first, second) = (daemon(mesh, "node1")?, daemon(mesh, "node2")?);
    let client = mesh.pod("shop", "app=client", None)?;
    let (of_first, of_second) =
        (bound(mesh, &first, "ztunnel", "ambit-ca")?, bound(mesh, &second, "ztunnel", "ambit-ca")?);
    let of_client = bound(mesh, &client, "client", "ambit-ca")?;
    let unbound = |namespace: &str, account: &str| {
        let words = ["-n", namespace, "create", "token", account, "--audience", "ambit-ca"];
        anyhow::Ok(mesh.kubectl(&words)?.trim().to_owned())
    };
    let own = Some("shop/sa/client");
    let others = Some("shop/sa/cart");
    let rows = [
        ("node1's daemon, a pod of node1", of_first.clone(), own, own),
        ("node2's daemon, a pod of node2", of_second.clone(), others, others),
        ("node1's daemon, a pod of node2", of_first.clone(), others, None),
        ("node2's daemon, a pod of node1", of_second.clone(), own, None),
        ("node1's daemon, an identity without a pod", of_first.clone(), Some("shop/sa/unused"), None),
        ("node1's daemon, no name", of_first, None, Some("ambit-system/sa/ztunnel")),
        ("node2's daemon, no name", of_second, None, Some("ambit-system/sa/ztunnel")),
        ("a daemon's token for another audience", bound(mesh, &first, "ztunnel", "elsewhere")?, own, None),
        ("a daemon's token that no pod is bound to", unbound(SYSTEM, "ztunnel")?, own, None),
        ("a daemon's token that no pod is bound to, no name", unbound(SYSTEM, "ztunnel")?, None, None),
        ("a pod's own token, no name", of_client.clone(), None, own),
        ("a pod's own token, its own name", of_client.clone(), own, own),
        ("a pod's own token, another's name", of_client, others, None),
        ("a pod's token that no pod is bound to, no name", unbound("shop", "client")?, None, None),
        ("a pod's usual token, no name", bound(mesh, &client, "client", "")?, None, None),
        ("a pod's usual token", bound(mesh, &client, "client", "")?, own, None),
        ("a token that was never issued", "aGVsbG8.aGVsbG8.aGVsbG8".to_owned(), own, None),
    ];
    for (name, token, named, expected) in rows {
        table.row(&format!("certificate: {name}"), || match (ca.ask(&token, named)?, expected) {
            (Ok(chain), Some(expected)) => {
                let identity = format!("spiffe://cluster.local/ns/{expected}");
                ensure!(carries(&chain, &identity)?, "a certificate of another identity than {identity}");
                Ok(())
            }
            (Ok(_), None) => bail!("a certificate was given"),
            (Err(refused), Some(_)) => bail!("no certificate: {refused}"),
            (Err(refused), None) => {
                use tonic::Code::{PermissionDenied, Unauthenticated};
                let right = matches!(refused.code(), PermissionDenied | Unauthenticated);
                ensure!(right, "refused for another reason: {refused}");
                Ok(())
            }
        });
    }
    Ok(())
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
        ("ztunnel", "get nodes", true),
        ("ztunnel", "list nodes", false),
        ("ztunnel", "patch nodes", false),
        ("ztunnel", "get secrets -n ambit-system", false),
        ("ztunnel", "create tokenreviews.authentication.k8s.io", false),
        ("ambit-cni", "get pods -A", true),
        ("ambit-cni", "get namespaces", true),
        ("ambit-cni", "patch pods --subresource=status -A", false),
        ("ambit-cni", "list namespaces", false),
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
}

/// Every account of the chart, what it could abuse, and whose it is: node1's credentials against a pod of
/// their own node and one of node2.
fn matrix(mesh: &Mesh, table: &mut Rows) -> Result<()> {
    use Fate::{Done, Nothing, Policy, Rbac};
    let api = Api::of(mesh)?;
    let agent = bound(mesh, &daemon(mesh, "node1")?, "ztunnel", "")?;
    let unbound_agent = mesh.kubectl(&["-n", SYSTEM, "create", "token", "ztunnel"])?.trim().to_owned();
    let plugin = kubeconfig(mesh)?["users"][0]["user"]["token"].as_str().context("no token")?.to_owned();
    let controller = mesh.pod(SYSTEM, "app.kubernetes.io/name=ambit-controller", None)?;
    let controller = bound(mesh, &controller, "ambit-controller", "")?;
    let accounts = [&agent, &unbound_agent, &plugin, &controller];
    let (own, foreign) = (mesh.pod("shop", "app=client", None)?, mesh.pod("shop", "app=cart", None)?);
    ensure!((own.node.as_str(), foreign.node.as_str()) == ("node1", "node2"), "the pods are elsewhere");
    // Of the pod, for the agent of node1: on its own node, on the other; then for one whose token is bound to
    // no pod, the plugin and the controller.
    let metadata = |field: &str, value: Value| json!({"metadata": {field: value}});
    let status = |field: &str, value: Value| json!({"status": {field: value}});
    let condition = json!([{"type": "Ready", "status": "False"}]);
    let addresses = json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]});
    let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "node1", "uid": "1"}]);
    let annotation = |name: &str, value: Value| metadata("annotations", json!({name: value}));
    let fields = [
        (
            "its annotation",
            annotation("ambient.istio.io/redirection", json!("x")),
            [Done, Policy, Policy, Rbac, Rbac],
        ),
        (
            "its other annotation",
            annotation("ambit.dev/not-captured", json!("x")),
            [Done, Policy, Policy, Rbac, Rbac],
        ),
        (
            "its annotation removed",
            annotation("ambient.istio.io/redirection", Value::Null),
            [Done, Policy, Policy, Rbac, Rbac],
        ),
        ("another annotation", annotation("tests/by", json!("node1")), [Policy, Policy, Policy, Rbac, Rbac]),
        (
            "an annotation of Ambit's that users write",
            annotation("ambit.dev/direct", json!("x")),
            [Policy, Policy, Policy, Rbac, Rbac],
        ),
        ("a label", metadata("labels", json!({"app": "cart"})), [Policy, Policy, Policy, Rbac, Rbac]),
        ("a finalizer", metadata("finalizers", json!(["tests/x"])), [Policy, Policy, Policy, Rbac, Rbac]),
        ("the addresses", json!({"status": addresses}), [Policy, Policy, Policy, Rbac, Rbac]),
        ("a condition", status("conditions", condition), [Policy, Policy, Policy, Rbac, Rbac]),
        ("the phase", status("phase", json!("Failed")), [Policy, Policy, Policy, Rbac, Rbac]),
        (
            "the node's address",
            json!({"status": {"hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.1"}]}}),
            [Policy, Policy, Policy, Rbac, Rbac],
        ),
        ("an owner", metadata("ownerReferences", owner), [Nothing, Policy, Policy, Rbac, Rbac]),
        ("the node", json!({"spec": {"nodeName": "node3"}}), [Nothing, Policy, Policy, Rbac, Rbac]),
        (
            "the service account",
            json!({"spec": {"serviceAccountName": "x"}}),
            [Nothing, Policy, Policy, Rbac, Rbac],
        ),
    ];
    for (field, body, expected) in fields {
        let asked = [
            (accounts[0], &own),
            (accounts[0], &foreign),
            (accounts[1], &own),
            (accounts[2], &own),
            (accounts[3], &own),
        ];
        let who = [
            "the agent",
            "the agent, another node's pod",
            "an agent without a pod",
            "the plugin",
            "the controller",
        ];
        for (((token, pod), who), expected) in asked.into_iter().zip(who).zip(expected) {
            table.row(&format!("pods/status: {field}: {who}"), || {
                let path = format!("/api/v1/namespaces/shop/pods/{}/status", pod.name);
                let before = mesh.get(&["pod", "-n", "shop", &pod.name])?;
                fares(&api, token, ("PATCH", &path, &body), Some(&before), expected)
            });
        }
    }
    requests(&api, &accounts, (&own, &foreign), table);
    Ok(())
}

/// What no account may do to anything but the status of pods.
fn requests(api: &Api, accounts: &[&String; 4], (own, foreign): (&Pod, &Pod), table: &mut Rows) {
    use Fate::{Done, Policy, Rbac};
    let pods = "/api/v1/namespaces/shop/pods";
    let of = |pod: &Pod, what: &str| format!("{pods}/{}{what}", pod.name);
    let label = json!({"metadata": {"labels": {"istio.io/dataplane-mode": "none"}}});
    let container = json!([{"name": "x", "image": "x"}]);
    let pod = |namespace: &str, annotations: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": "node1", "containers": container},
            "metadata": {"name": "x", "namespace": namespace, "annotations": annotations}})
    };
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": own.name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "node2"}});
    let token = |kind: &str, name: &str, seconds: u32| {
        let mut spec = json!({"expirationSeconds": seconds, "audiences": []});
        if !kind.is_empty() {
            spec["boundObjectRef"] = json!({"apiVersion": "v1", "kind": kind, "name": name});
        }
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
    };
    let csr = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": "x"},
        "spec": {"request": "eA==", "signerName": "kubernetes.io/kube-apiserver-client",
        "usages": ["client auth"]}});
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}});
    let taint = json!({"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}});
    let deployments = "/apis/apps/v1/namespaces/shop/deployments";
    let gateway = json!([{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "x",
        "uid": "x"}]);
    let deployment = |owners: &Value, mut spec: Value| {
        spec["containers"] = container.clone();
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "x", "namespace": "shop", "ownerReferences": owners},
            "spec": {"selector": {"matchLabels": {"x": "x"}},
                "template": {"metadata": {"labels": {"x": "x"}}, "spec": spec}}})
    };
    let system = format!("/api/v1/namespaces/{SYSTEM}");
    let token_of = |namespace: &str, account: &str| {
        format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token")
    };
    let cni = token_of(SYSTEM, "ambit-cni");
    let none = Value::Null;
    // The agent of node1, the plugin, the controller.
    let rows = [
        ("reads a pod", "GET", of(own, ""), none.clone(), [Done, Done, Rbac]),
        ("reads another node's pod", "GET", of(foreign, ""), none.clone(), [Done, Done, Rbac]),
        ("changes a pod", "PATCH", of(own, ""), label.clone(), [Rbac; 3]),
        ("deletes a pod", "DELETE", of(own, ""), none.clone(), [Rbac; 3]),
        ("makes a pod", "POST", pods.to_owned(), pod("shop", json!({})), [Rbac; 3]),
        (
            "makes a static pod's object",
            "POST",
            pods.to_owned(),
            pod("shop", json!({"kubernetes.io/config.mirror": "x"})),
            [Rbac; 3],
        ),
        ("binds a pod", "POST", of(own, "/binding"), binding, [Rbac; 3]),
        (
            "evicts a pod",
            "POST",
            of(own, "/eviction"),
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": own.name}}),
            [Rbac; 3],
        ),
        ("enters a pod", "POST", of(own, "/exec"), none.clone(), [Rbac; 3]),
        ("adds a container", "PATCH", of(own, "/ephemeralcontainers"), json!({"spec": {}}), [Rbac; 3]),
        ("reads a node", "GET", "/api/v1/nodes/node2".to_owned(), none.clone(), [Done, Rbac, Done]),
        ("lists nodes", "GET", "/api/v1/nodes".to_owned(), none.clone(), [Rbac, Rbac, Done]),
        ("labels its node", "PATCH", "/api/v1/nodes/node1".to_owned(), label.clone(), [Rbac, Rbac, Policy]),
        ("taints a node", "PATCH", "/api/v1/nodes/node2".to_owned(), taint, [Rbac, Rbac, Policy]),
        (
            "cordons a node",
            "PATCH",
            "/api/v1/nodes/node2".to_owned(),
            json!({"spec": {"unschedulable": true}}),
            [Rbac, Rbac, Policy],
        ),
        (
            "changes a node's status",
            "PATCH",
            "/api/v1/nodes/node1/status".to_owned(),
            json!({"status": {"phase": "x"}}),
            [Rbac; 3],
        ),
        ("deletes a node", "DELETE", "/api/v1/nodes/node2".to_owned(), none.clone(), [Rbac; 3]),
        ("labels a namespace", "PATCH", "/api/v1/namespaces/shop".to_owned(), label.clone(), [Rbac; 3]),
        ("lists secrets", "GET", "/api/v1/secrets".to_owned(), none.clone(), [Rbac; 3]),
        ("reads the CA's key", "GET", format!("{system}/secrets/ambit-ca"), none.clone(), [Rbac, Rbac, Done]),
        ("reads another secret", "GET", format!("{system}/secrets/other"), none.clone(), [Rbac; 3]),
        (
            "reads a configuration",
            "GET",
            format!("{system}/configmaps/ztunnel"),
            none.clone(),
            [Rbac, Rbac, Done],
        ),
        (
            "changes the roots",
            "PATCH",
            format!("{system}/configmaps/ambit-root"),
            json!({"data": {"x": "y"}}),
            [Rbac, Rbac, Done],
        ),
        (
            "changes the daemons' configuration",
            "PATCH",
            format!("{system}/configmaps/ztunnel"),
            json!({"data": {"x": "y"}}),
            [Rbac, Rbac, Policy],
        ),
        (
            "changes a service",
            "PATCH",
            "/api/v1/namespaces/shop/services/cart".to_owned(),
            json!({"spec": {"selector": {"app": "client"}}}),
            [Rbac, Rbac, Policy],
        ),
        (
            "adopts a service for a Gateway",
            "PATCH",
            "/api/v1/namespaces/shop/services/cart".to_owned(),
            json!({"metadata": {"ownerReferences": gateway}}),
            [Rbac, Rbac, Policy],
        ),
        (
            "makes a Deployment",
            "POST",
            deployments.to_owned(),
            deployment(&json!([]), json!({"serviceAccountName": "x"})),
            [Rbac, Rbac, Policy],
        ),
        (
            "makes a waypoint",
            "POST",
            deployments.to_owned(),
            deployment(&gateway, json!({"serviceAccountName": "x"})),
            [Rbac, Rbac, Done],
        ),
        (
            "makes a waypoint under another account",
            "POST",
            deployments.to_owned(),
            deployment(&gateway, json!({"serviceAccountName": "cart"})),
            [Rbac, Rbac, Policy],
        ),
        (
            "makes a waypoint in the node's network",
            "POST",
            deployments.to_owned(),
            deployment(&gateway, json!({"serviceAccountName": "x", "hostNetwork": true})),
            [Rbac, Rbac, Policy],
        ),
        (
            "makes a waypoint with a folder of the node",
            "POST",
            deployments.to_owned(),
            deployment(
                &gateway,
                json!({"serviceAccountName": "x", "volumes": [{"name": "x", "hostPath": {"path": "/"}}]}),
            ),
            [Rbac, Rbac, Policy],
        ),
        ("deletes a Deployment", "DELETE", format!("{deployments}/cart"), none.clone(), [Rbac; 3]),
        (
            "changes the daemons",
            "PATCH",
            format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/ztunnel"),
            label.clone(),
            [Rbac; 3],
        ),
        (
            "changes a policy",
            "PATCH",
            "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/x".to_owned(),
            label,
            [Rbac; 3],
        ),
        (
            "grants itself a right",
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles".to_owned(),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": "x"}}),
            [Rbac; 3],
        ),
        (
            "asks for a client certificate",
            "POST",
            "/apis/certificates.k8s.io/v1/certificatesigningrequests".to_owned(),
            csr,
            [Rbac; 3],
        ),
        (
            "reviews a token",
            "POST",
            "/apis/authentication.k8s.io/v1/tokenreviews".to_owned(),
            review,
            [Rbac, Rbac, Done],
        ),
        (
            "the plugin's token, of its node",
            "POST",
            cni.clone(),
            token("Node", "node1", 86_400),
            [Done, Rbac, Rbac],
        ),
        (
            "the plugin's token, of another node",
            "POST",
            cni.clone(),
            token("Node", "node2", 3600),
            [Policy, Rbac, Rbac],
        ),
        (
            "the plugin's token, for a week",
            "POST",
            cni.clone(),
            token("Node", "node1", 604_800),
            [Policy, Rbac, Rbac],
        ),
        (
            "the plugin's token, bound to nothing",
            "POST",
            cni.clone(),
            token("", "", 3600),
            [Done, Rbac, Rbac],
        ),
        (
            "the plugin's token, bound to nothing, for a day",
            "POST",
            cni,
            token("", "", 86_400),
            [Policy, Rbac, Rbac],
        ),
        (
            "a token of the controller",
            "POST",
            token_of(SYSTEM, "ambit-controller"),
            token("", "", 3600),
            [Rbac; 3],
        ),
        ("a token of the daemons", "POST", token_of(SYSTEM, "ztunnel"), token("", "", 3600), [Rbac; 3]),
        ("a token of a pod's account", "POST", token_of("shop", "client"), token("", "", 3600), [Rbac; 3]),
    ];
    let callers = [("the agent", accounts[0]), ("the plugin", accounts[2]), ("the controller", accounts[3])];
    for (what, verb, path, body, expected) in &rows {
        for ((who, token), expected) in callers.iter().zip(expected) {
            table.row(&format!("{what}: {who}"), || fares(api, token, (verb, path, body), None, *expected));
        }
    }
}

/// The plugin's credential, as it lies on node1.
fn kubeconfig(mesh: &Mesh) -> Result<Value> {
    let path = "/etc/cni/net.d/ambit-cni.kubeconfig";
    Ok(serde_json::from_str(&run(&mut mesh.node("node1")?.run("cat", &[path]))?)?)
}

fn credential(mesh: &Mesh) -> Result<()> {
    let token = kubeconfig(mesh)?["users"][0]["user"]["token"].as_str().context("no token")?.to_owned();
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (_, answer) = Api::of(mesh)?.ask(&token, "POST", path, &review)?;
    let user = &answer["status"]["userInfo"];
    ensure!(user["username"] == format!("system:serviceaccount:{SYSTEM}:ambit-cni"), "{answer}");
    ensure!(user["extra"]["authentication.kubernetes.io/node-name"] == json!(["node1"]), "{answer}");
    let mode =
        run(&mut mesh.node("node1")?.run("stat", &["-c", "%a %u", "/etc/cni/net.d/ambit-cni.kubeconfig"]))?;
    ensure!(mode.trim() == "600 0", "mode and owner: {mode}");
    Ok(())
}

/// A node's own credential makes static pods' objects in any namespace. Such a pod gets no identity, although
/// the node annotates it as captured.
fn static_pod(mesh: &Mesh) -> Result<()> {
    let (ca, _forward) = Ca::forwarded(mesh)?;
    let first = daemon(mesh, "node1")?;
    let (token, agent) = (bound(mesh, &first, "ztunnel", "ambit-ca")?, bound(mesh, &first, "ztunnel", "")?);
    let node = mesh.get(&["node", "node1"])?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "mirror-node1", "namespace": "shop",
            "annotations": {"kubernetes.io/config.mirror": "x", "kubernetes.io/config.source": "file"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "node1", "controller": true,
                "uid": node["metadata"]["uid"]}]},
        "spec": {"nodeName": "node1",
            "containers": [{"name": "x", "image": "docker.io/ambit/tests:0.1.0"}]}});
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("pod.json");
    std::fs::write(&file, pod.to_string())?;
    let file = file.to_str().context("a path in UTF-8")?;
    let as_node = ["--as=system:node:node1", "--as-group=system:nodes", "--as-group=system:authenticated"];
    let path = "/api/v1/namespaces/shop/pods/mirror-node1/status";
    let captured = r#"{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}"#;
    within(DEADLINE, "the pod outlives the question", || {
        let words = [&as_node[..], &["create", "-f", file]].concat();
        // The kubelet deletes it soon: it has started no such pod.
        mesh.kubectl(&words)?;
        mesh.patch(&agent, path, captured)?;
        let answer = ca.ask(&token, Some("shop/sa/default"))?;
        mesh.kubectl(&["-n", "shop", "get", "pod", "mirror-node1"])?;
        Ok(match answer {
            Ok(_) => Err(anyhow::anyhow!("node1 got the identity of the namespace's default account")),
            Err(refused) => {
                let denied = refused.code() == tonic::Code::PermissionDenied;
                if denied { Ok(()) } else { Err(anyhow::anyhow!("refused for another reason: {refused}")) }
            }
        })
    })?
}

/// Tokens end with their service account: the plugin is refused, tells the agent, and a pod starts with the
/// next credential.
fn renewed(mesh: &Mesh) -> Result<()> {
    let before = kubeconfig(mesh)?;
    let account = mesh.kubectl(&["-n", SYSTEM, "get", "serviceaccount", "ambit-cni", "-o", "json"])?;
    let mut account: Value = serde_json::from_str(&account)?;
    account["metadata"] = json!({"name": "ambit-cni", "namespace": SYSTEM,
        "labels": account["metadata"]["labels"], "annotations": account["metadata"]["annotations"]});
    mesh.kubectl(&["-n", SYSTEM, "delete", "serviceaccount", "ambit-cni"])?;
    mesh.cluster.apply(&account.to_string())?;
    let api = Api::of(mesh)?;
    let token = before["users"][0]["user"]["token"].as_str().context("no token")?;
    // The API server remembers for some seconds whom it has authenticated.
    within(DEADLINE, "the old credential is refused", || {
        let (status, _) = api.ask(token, "GET", "/api/v1/namespaces/shop", &Value::Null)?;
        ensure!(status == 401, "{status}");
        Ok(())
    })?;
    mesh.kubectl(&["-n", "shop", "rollout", "restart", "deployment/client"])?;
    mesh.rolled_out("shop", &["deployment/client"])?;
    ensure!(kubeconfig(mesh)? != before, "the same credential");
    Ok(())
}
