//! The objects of a large cluster: nodes and pods without a kubelet.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::api::Api;
use super::{CLIENTS, NAMESPACES, PODS, SERVICES};
use crate::kubernetes::SYSTEM;

fn namespace(number: usize) -> String {
    format!("n{}", number % NAMESPACES)
}

/// Makes them all. Pods are spread over the clients' nodes.
pub fn populate(api: &Api) -> Result<()> {
    let post = |path: String, body: Value| ("POST", path, body);
    let space = |name: &str| {
        post(
            "/api/v1/namespaces".to_owned(),
            json!({"metadata": {"name": name, "labels": {"istio.io/dataplane-mode": "ambient"}}}),
        )
    };
    let mut requests: Vec<_> = (0..NAMESPACES).map(|number| space(&namespace(number))).collect();
    requests.push(space(SYSTEM));
    requests.extend(
        (0..CLIENTS).map(|node| {
            post("/api/v1/nodes".to_owned(), json!({"metadata": {"name": format!("sim{node}")}}))
        }),
    );
    api.send(&requests).context("failed to create namespaces and nodes")?;

    let account = |space: &str, name: &str| {
        post(format!("/api/v1/namespaces/{space}/serviceaccounts"), json!({"metadata": {"name": name}}))
    };
    let mut requests: Vec<_> = (0..NAMESPACES).map(|number| account(&namespace(number), "default")).collect();
    requests.push(account(SYSTEM, "ztunnel"));
    requests.extend((0..SERVICES).map(|number| {
        let body = json!({
            "metadata": {"name": format!("s{number}")},
            "spec": {
                "selector": {"app": format!("a{number}")},
                "ports": [{"port": 80, "targetPort": 8080}],
            },
        });
        post(format!("/api/v1/namespaces/{}/services", namespace(number)), body)
    }));
    api.send(&requests).context("failed to create accounts and services")?;

    let pod = |space: &str, name: &str, account: &str, app: &str, node: usize| {
        let body = json!({
            "metadata": {
                "name": name, "labels": {"app": app},
                "annotations": {"ambient.istio.io/redirection": "enabled"},
            },
            "spec": {
                "nodeName": format!("sim{node}"), "serviceAccountName": account,
                "automountServiceAccountToken": false,
                "containers": [{"name": "c", "image": "none", "ports": [{"containerPort": 8080}]}],
            },
        });
        post(format!("/api/v1/namespaces/{space}/pods"), body)
    };
    let mut requests: Vec<_> = (0..PODS)
        .map(|number| {
            pod(
                &namespace(number),
                &format!("p{number}"),
                "default",
                &format!("a{}", number % SERVICES),
                number % CLIENTS,
            )
        })
        .collect();
    requests
        .extend((0..CLIENTS).map(|node| pod(SYSTEM, &format!("ztunnel-{node}"), "ztunnel", "ztunnel", node)));
    api.send(&requests).context("failed to create pods")?;
    let requests: Vec<_> = (0..PODS).map(|number| status(number, true)).collect();
    api.send(&requests).context("failed to write statuses").map(drop)
}

/// The request that sets a pod's status: running, and ready or not.
pub fn status(number: usize, ready: bool) -> (&'static str, String, Value) {
    let address = format!("10.{}.{}.{}", 64 + number / 62_500, number / 250 % 250, number % 250 + 1);
    let body = json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
    }});
    ("PATCH", format!("/api/v1/namespaces/{}/pods/p{number}/status", namespace(number)), body)
}
