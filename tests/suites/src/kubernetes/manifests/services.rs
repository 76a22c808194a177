//! Every kind of service, and pods behind them.

use super::deployment;

/// Unassigned addresses: those of a load balancer, and of a router that hands its traffic to nodes.
pub const BALANCER: &str = "203.0.113.10";
pub const EXTERNAL: &str = "203.0.113.20";

/// A pod that declares no port as a probe.
fn unprobed(namespace: &str, name: &str, node: &str) -> String {
    let probe = "          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}\n";
    deployment(namespace, name, 1, node).replace(probe, "")
}

/// Everything that runs.
pub fn pods() -> String {
    let args = |name: &str, port: u16| format!("args: [{name}, --listen, '[::]:{port}']\n");
    // Metrics on a port of their own, in a container of their own.
    let cart = unprobed("shop", "cart", "node2").replace(
        &args("cart", 8080),
        &format!(
            "{}          ports: [{{containerPort: 8080, hostPort: 18080}}]\n        \
             - name: metrics\n          image: docker.io/ambit/tests:0.1.0\n          {}",
            args("cart", 8080),
            args("metrics", 9102),
        ),
    );
    let server = |name: &str, node: &str, port: u16| {
        unprobed("shop", name, node)
            .replace(&format!("labels: {{app: {name}}}}}"), &format!("labels: {{app: {name}, set: both}}}}"))
            .replace(
                &args(name, 8080),
                &format!(
                    "{}          ports: [{{name: web, containerPort: {port}}}]\n        \
                     - name: named\n          image: docker.io/ambit/tests:0.1.0\n          {}",
                    args(name, 8080),
                    args(name, port)
                ),
            )
    };
    let late = deployment("shop", "late", 1, "node2")
        .replace("port: 8080}, periodSeconds", "port: 8099}, periodSeconds");
    [
        unprobed("shop", "client", "node1"),
        unprobed("shop", "neighbour", "node2"),
        unprobed("outside", "client", "node1"),
        unprobed("watch", "prometheus", "node1"),
        cart,
        deployment("shop", "probed", 1, "node2"),
        server("near", "node1", 8081),
        server("far", "node2", 8082),
        late,
    ]
    .concat()
}

/// Every kind of service.
pub fn addresses() -> String {
    let external = format!("externalIPs: [{EXTERNAL}]");
    let rows = [
        ("cart", "app: cart", "", "80"),
        ("balanced", "app: cart", "type: LoadBalancer, allocateLoadBalancerNodePorts: false", "80"),
        ("external", "app: cart", &external, "80"),
        ("dual", "app: cart", "ipFamilyPolicy: RequireDualStack", "80"),
        ("headless", "app: cart", "clusterIP: None", "8080"),
        ("any", "app: cart", "type: NodePort", "80, nodePort: 30080"),
        ("own", "app: cart", "type: NodePort, externalTrafficPolicy: Local", "80, nodePort: 30081"),
        ("any-probed", "app: probed", "type: NodePort", "80, nodePort: 30082"),
        ("own-probed", "app: probed", "type: NodePort, externalTrafficPolicy: Local", "80, nodePort: 30083"),
        ("both", "set: both", "", "80"),
        ("local", "set: both", "internalTrafficPolicy: Local", "80"),
        ("far-only", "app: far", "internalTrafficPolicy: Local", "80"),
        ("close", "set: both", "trafficDistribution: PreferClose", "80"),
        ("sticky", "set: both", "sessionAffinity: ClientIP", "80"),
        ("published", "app: late", "publishNotReadyAddresses: true", "80"),
        ("unpublished", "app: late", "", "80"),
    ];
    let services = rows.map(|(name, selector, more, port)| {
        let more = if more.is_empty() { String::new() } else { format!("{more}, ") };
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{{more}selector: {{{selector}}}, ports: [{{port: {port}, targetPort: 8080}}]}}\n---\n"
        )
    });
    let mut text = services.concat();
    text += "apiVersion: v1\nkind: Service\nmetadata: {name: named, namespace: shop}\n\
             spec: {selector: {set: both}, ports: [{port: 80, targetPort: web}]}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\n\
             spec: {type: ExternalName, externalName: cart.shop.svc.cluster.local}\n";
    text
}
