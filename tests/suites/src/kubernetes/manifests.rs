//! What is applied to clusters in tests.

pub mod services;

/// Two shops, one on each node, and a client on the first.
pub fn shop(namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n---\n{}{}{}",
        deployment(namespace, "client", 1, "node1"),
        deployment(namespace, "cart", 1, "node2"),
        service(namespace, "cart"),
    )
}

/// So many shops of a name; on a node if one is named.
pub fn deployment(namespace: &str, name: &str, replicas: u32, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: \
         {namespace}}}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: \
         {namespace}}}\nspec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: {name}}}}}\n  \
         template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      serviceAccountName: \
         {name}\n      terminationGracePeriodSeconds: 2\n      {}\n      containers:\n        - name: \
         shop\n          image: docker.io/ambit/tests:0.1.0\n          args: [{name}, --listen, \
         '[::]:8080']\n          readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: \
         1}}\n---\n",
        if node.is_empty() {
            String::new()
        } else {
            format!("nodeSelector: {{kubernetes.io/hostname: {node}}}")
        }
    )
}

/// A service on port 80 for the shops of a name.
pub fn service(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}\n---\n"
    )
}

/// Nothing but mutual TLS for a namespace.
pub fn strict(namespace: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: \
         {namespace}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
    )
}
