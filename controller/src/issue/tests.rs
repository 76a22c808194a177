use ambit_core::derive::{Object, ObjectEvent, Settings, World};

use super::*;

fn mesh(settings: Settings) -> Mesh {
    let pod = |name: &str, namespace: &str, node: &str, account: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{containers: [], nodeName: {node}, serviceAccountName: {account}{more}}}\n\
             status: {{phase: Running, podIP: 10.0.0.{}}}\n---\n",
            name.len()
        )
    };
    let ns = |name: &str, label: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{label}}}}}\n---\n")
    };
    let text = ns("shop", "istio.io/dataplane-mode: ambient")
        + &ns("legacy", "")
        + &pod("a", "shop", "n1", "web", "")
        + &pod("aa", "shop", "n2", "db", "")
        + &pod("aaa", "legacy", "n1", "old", "")
        + &pod("aaaa", "shop", "n1", "host", ", hostNetwork: true")
        + &pod("aaaaa", "shop", "n1", "job", "").replace("Running", "Succeeded")
        + &pod("aaaaaa", "shop", "n1", "\"\"", "")
        + &pod("aaaaaaa", "shop", "n1", "static", "")
            .replace("namespace: shop}", "namespace: shop, annotations: {kubernetes.io/config.mirror: x}}");
    let objects = ambit_crd::parse(&text).into_iter().map(|document| match document.outcome {
        ambit_crd::Outcome::Accepted { object, .. } => object,
        other => panic!("{other:?}"),
    });
    let events: Vec<_> = objects.map(|object: Box<Object>| ObjectEvent::Put(object)).collect();
    let mut mesh = Mesh::new();
    mesh.apply(World::new(settings).apply(events).changes);
    mesh
}

#[test]
fn a_node_may_have_the_identities_of_its_own_workloads() {
    let mesh = mesh(Settings { identity_by_account: true, ..Settings::default() });
    let rows = [
        ("its own", "n1", "spiffe://cluster.local/ns/shop/sa/web", true, true),
        ("another node's", "n1", "spiffe://cluster.local/ns/shop/sa/db", false, false),
        ("another node's, vice versa", "n2", "spiffe://cluster.local/ns/shop/sa/web", false, false),
        ("not enrolled", "n1", "spiffe://cluster.local/ns/legacy/sa/old", false, true),
        ("on the host's network", "n1", "spiffe://cluster.local/ns/shop/sa/host", false, false),
        ("finished", "n1", "spiffe://cluster.local/ns/shop/sa/job", false, false),
        (
            "of a pod without a service account",
            "n1",
            "spiffe://cluster.local/ns/shop/sa/default",
            false,
            false,
        ),
        ("of a static pod", "n1", "spiffe://cluster.local/ns/shop/sa/static", false, false),
        ("another trust domain", "n1", "spiffe://example.org/ns/shop/sa/web", false, false),
        ("another namespace", "n1", "spiffe://cluster.local/ns/other/sa/web", false, false),
        ("no workload's", "n1", "spiffe://cluster.local/ns/shop/sa/nobody", false, false),
        ("a node without workloads", "n3", "spiffe://cluster.local/ns/shop/sa/web", false, false),
        ("no node", "", "spiffe://cluster.local/ns/shop/sa/web", false, false),
    ];
    for (name, node, identity, enrolled, all) in rows {
        let identity = identity.parse().unwrap();
        assert_eq!(hosts(&mesh, &BTreeSet::new(), node, &identity, Hosted::Enrolled), enrolled, "{name}");
        assert_eq!(
            hosts(&mesh, &BTreeSet::new(), node, &identity, Hosted::All),
            all,
            "{name}, on Kubernetes"
        );
    }
}

#[test]
fn with_files_a_pod_that_names_no_account_has_the_default_one() {
    let mesh = mesh(Settings::default());
    let identity = "spiffe://cluster.local/ns/shop/sa/default".parse().unwrap();
    assert!(hosts(&mesh, &BTreeSet::new(), "n1", &identity, Hosted::Enrolled));
}
