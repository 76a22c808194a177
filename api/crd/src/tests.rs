//! Rows: what is written, and what is meant or said.

use ambit_core::derive::{
    ContainerPort, Kind, LocalityText, Metadata, MtlsMode, Owner, Phase, PolicyAction, PortRef,
    SliceEndpoint, TargetRef, TrafficDistribution, Transport,
};
use ambit_core::model::Health;
use proptest::prelude::*;

use super::*;

/// The only document's object.
fn accepted(text: &str) -> Object {
    let documents = parse(text);
    match &documents[..] {
        [Document { outcome: Outcome::Accepted { object, .. }, .. }] => (**object).clone(),
        other => panic!("{text}\n{other:#?}"),
    }
}

/// The only document's mistakes, and the object it is said of.
fn rejected(text: &str) -> (Option<String>, Vec<String>) {
    let documents = parse(text);
    match &documents[..] {
        [Document { outcome: Outcome::Rejected { object, mistakes }, .. }] => {
            (object.as_ref().map(ToString::to_string), mistakes.iter().map(ToString::to_string).collect())
        }
        other => panic!("{text}\n{other:#?}"),
    }
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> std::collections::BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[test]
fn namespace() {
    let Object::Namespace(namespace) = accepted(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: \
         ambient}, creationTimestamp: 2026-01-02T03:04:05Z}",
    ) else {
        panic!("not a namespace")
    };
    let expected = Metadata {
        name: "shop".to_owned(),
        labels: labels([("istio.io/dataplane-mode", "ambient")]),
        created: Some(1_767_323_045),
        ..Metadata::default()
    };
    assert_eq!(namespace.metadata, expected);
}

#[test]
fn pod() {
    let Object::Pod(pod) = accepted(
        r"
apiVersion: v1
kind: Pod
metadata:
  name: cart-7d4-x2
  namespace: shop
  labels: {app: cart}
  ownerReferences:
  - {apiVersion: v1, kind: Node, name: other, uid: u1}
  - {apiVersion: apps/v1, kind: ReplicaSet, name: cart-7d4, uid: u2, controller: true}
spec:
  serviceAccountName: cart
  nodeName: node-a
  initContainers:
  - {name: once, image: x, ports: [{containerPort: 1}]}
  - {name: sidecar, image: x, restartPolicy: Always, ports: [{containerPort: 9000, name: side}]}
  containers:
  - name: app
    image: x
    ports: [{containerPort: 8080, name: http}, {containerPort: 53, protocol: UDP}]
    livenessProbe: {httpGet: {path: /, port: http}}
    readinessProbe: {tcpSocket: {port: 8081}}
    startupProbe: {grpc: {port: 8082}}
  - name: second
    image: x
    livenessProbe: {httpGet: {port: http}}
    readinessProbe: {httpGet: {port: 8081}}
    startupProbe: {tcpSocket: {host: example.org, port: 25}}
    lifecycle: {postStart: {httpGet: {port: 8083}}, preStop: {exec: {command: [x]}}}
  - name: third
    image: x
    ports: [{containerPort: 8084, name: bye}]
    lifecycle: {postStart: {httpGet: {port: 25, host: example.org}}, preStop: {httpGet: {port: bye}}}
status:
  phase: Running
  conditions: [{type: Ready, status: 'True'}]
  podIP: 10.0.0.1
  podIPs: [{ip: 10.0.0.1}, {ip: '2001:db8::1'}]
",
    ) else {
        panic!("not a pod")
    };
    assert_eq!(pod.metadata.namespace, "shop");
    assert_eq!((pod.service_account.as_str(), pod.node.as_str()), ("cart", "node-a"));
    assert_eq!(pod.owner, Some(Owner { kind: "ReplicaSet".to_owned(), name: "cart-7d4".to_owned() }));
    let port = |name: &str, port, transport| ContainerPort { name: name.to_owned(), port, transport };
    let ports = [
        port("side", 9000, Transport::Tcp),
        port("http", 8080, Transport::Tcp),
        port("", 53, Transport::Udp),
        port("bye", 8084, Transport::Tcp),
    ];
    assert_eq!(pod.ports, ports);
    let number = PortRef::Number;
    let probes = [
        number(8080),
        number(8081),
        number(8082),
        PortRef::Name("http".to_owned()),
        number(8083),
        number(8084),
    ];
    assert_eq!(pod.probes, probes);
    assert_eq!(
        pod.addresses,
        ["10.0.0.1".parse::<std::net::IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]
    );
    assert_eq!((pod.phase, pod.ready, pod.host_network), (Phase::Running, true, false));
}

#[test]
fn pod_states() {
    let base = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, META}\nspec: {containers: [], SPEC}\nSTATUS";
    let ready = "conditions: [{type: Ready, status: 'True'}]";
    let rows = [
        ("no status", "", "", "", (Phase::Pending, false, 0, false)),
        (
            "succeeded",
            "",
            "",
            "status: {phase: Succeeded, podIP: 10.0.0.1}",
            (Phase::Succeeded, false, 1, false),
        ),
        ("no address yet", "", "", "status: {phase: Pending, podIP: ''}", (Phase::Pending, false, 0, false)),
        (
            "v4-mapped",
            "",
            "",
            "status: {phase: Running, podIP: '::ffff:10.0.0.1'}",
            (Phase::Running, false, 1, false),
        ),
        (
            "not ready",
            "",
            "",
            "status: {phase: Running, conditions: [{type: Ready, status: 'False'}]}",
            (Phase::Running, false, 0, false),
        ),
        (
            "ready",
            "",
            "hostNetwork: true",
            &format!("status: {{phase: Running, {ready}}}"),
            (Phase::Running, true, 0, true),
        ),
        (
            "terminating",
            "deletionTimestamp: 2026-01-02T03:04:05Z",
            "",
            &format!("status: {{phase: Running, {ready}}}"),
            (Phase::Running, true, 0, false),
        ),
    ];
    for (name, meta, spec, status, expected) in rows {
        let text = base.replace("META", meta).replace("SPEC", spec).replace("STATUS", status);
        let Object::Pod(pod) = accepted(&text) else { panic!("{name}") };
        assert_eq!((pod.phase, pod.ready, pod.addresses.len(), pod.host_network), expected, "{name}");
        assert!(pod.addresses.iter().all(std::net::IpAddr::is_ipv4), "{name}");
        assert_eq!(pod.metadata.namespace, "default", "{name}");
        assert_eq!(pod.terminating, name == "terminating", "{name}");
    }
}

#[test]
fn service() {
    let Object::Service(service) = accepted(
        r"
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00::10']
  externalIPs: [192.0.2.1]
  selector: {app: cart}
  publishNotReadyAddresses: true
  internalTrafficPolicy: Local
  trafficDistribution: PreferClose
  ports:
  - {name: http, port: 80, targetPort: web, appProtocol: http}
  - {name: plain, port: 81}
  - {name: number, port: 82, targetPort: 8082}
  - {name: quoted, port: 83, targetPort: '8083'}
  - {name: dns, port: 53, protocol: UDP}
status:
  loadBalancer: {ingress: [{hostname: x.example}, {ip: 192.0.2.2, ipMode: VIP}, {ip: 192.0.2.3, ipMode: Proxy}]}
",
    ) else {
        panic!("not a service")
    };
    let texts = |list: &[std::net::IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&service.cluster_ips), ["10.96.0.10", "fd00::10"]);
    assert_eq!(texts(&service.external_ips), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(service.selector, labels([("app", "cart")]));
    let targets: Vec<_> = service.ports.iter().map(|port| (port.port, port.target.clone())).collect();
    let number = PortRef::Number;
    let expected = [
        (80, PortRef::Name("web".to_owned())),
        (81, number(81)),
        (82, number(8082)),
        (83, number(8083)),
        (53, number(53)),
    ];
    assert_eq!(targets, expected);
    assert_eq!(service.ports[0].app_protocol, "http");
    assert_eq!(service.ports[4].transport, Transport::Udp);
    assert!(service.publish_not_ready && service.node_local && !service.external_name);
    assert_eq!(service.traffic_distribution, TrafficDistribution::PreferSameZone);
}

#[test]
fn headless_and_external_services() {
    for (spec, external) in [
        ("{clusterIP: None}", false),
        ("{clusterIPs: [None]}", false),
        ("{clusterIP: ''}", false),
        ("{type: ExternalName, externalName: x.example}", true),
    ] {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {spec}");
        let Object::Service(service) = accepted(&text) else { panic!("{spec}") };
        assert_eq!((service.cluster_ips.len(), service.external_name), (0, external), "{spec}");
    }
}

#[test]
fn endpoint_slice() {
    let Object::EndpointSlice(slice) = accepted(
        r"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports:
- {name: sql, port: 5432}
- {name: dns, port: 53, protocol: UDP}
- {name: any}
endpoints:
- {addresses: [10.0.0.1, 10.0.0.2], nodeName: node-a, zone: eu-1, targetRef: {kind: Pod, name: db-0, namespace: shop}}
- {addresses: [10.0.0.3], targetRef: {kind: Node, name: node-a}}
- {addresses: [10.0.0.4], targetRef: {kind: Pod, name: db-0, namespace: other}}
- {addresses: []}
",
    ) else {
        panic!("not a slice")
    };
    assert_eq!((slice.service.as_str(), slice.of_selector), ("db", false));
    let ports: Vec<_> =
        slice.ports.iter().map(|port| (port.name.as_str(), port.port, port.transport)).collect();
    assert_eq!(ports, [("sql", 5432, Transport::Tcp), ("dns", 53, Transport::Udp)]);
    let endpoint = |address: &str, node: &str, zone: &str, pod: Option<&str>| SliceEndpoint {
        address: address.parse().expect("an address"),
        health: Health::Healthy,
        node: node.to_owned(),
        zone: zone.to_owned(),
        pod: pod.map(str::to_owned),
    };
    let expected = [
        endpoint("10.0.0.1", "node-a", "eu-1", Some("db-0")),
        endpoint("10.0.0.3", "", "", None),
        // A pod of elsewhere is a pod, under no name that the slice could mean.
        endpoint("10.0.0.4", "", "", Some("")),
    ];
    assert_eq!(slice.endpoints, expected);
}

#[test]
fn states_of_endpoints() {
    let rows = [
        ("nothing said", "{}", Health::Healthy),
        ("ready", "{ready: true}", Health::Healthy),
        ("ready, with everything", "{ready: true, serving: true, terminating: false}", Health::Healthy),
        ("ready although it is ending", "{ready: true, serving: true, terminating: true}", Health::Healthy),
        ("ending, and serves", "{ready: false, serving: true, terminating: true}", Health::Draining),
        ("ending", "{ready: false, serving: false, terminating: true}", Health::Unhealthy),
        ("ending, serving not said", "{ready: false, terminating: true}", Health::Unhealthy),
        ("not ready", "{ready: false}", Health::Unhealthy),
        ("serves and is not to be used", "{ready: false, serving: true}", Health::Unhealthy),
    ];
    for (name, conditions, expected) in rows {
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a}}\naddressType: IPv6\n\
             endpoints: [{{addresses: ['fd00::1'], conditions: {conditions}}}]"
        );
        let Object::EndpointSlice(slice) = accepted(&text) else { panic!("{name}") };
        assert_eq!(slice.endpoints[0].health, expected, "{name}");
    }
}

#[test]
fn slices_without_addresses_of_their_own() {
    let with = |managed: &str, kind: &str| {
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: a, labels: {{endpointslice.kubernetes.io/managed-by: {managed}}}}}\n\
             addressType: {kind}\nendpoints: [{{addresses: [ADDRESS]}}]"
        );
        let address = if kind == "FQDN" { "x.example" } else { "10.0.0.1" };
        let Object::EndpointSlice(slice) = accepted(&text.replace("ADDRESS", address)) else {
            panic!("{kind}")
        };
        (slice.of_selector, slice.endpoints.len())
    };
    assert_eq!(with("endpointslice-controller.k8s.io", "IPv4"), (true, 0), "made of a selector");
    assert_eq!(
        with("endpointslicemirroring-controller.k8s.io", "IPv4"),
        (false, 1),
        "of an Endpoints object"
    );
    assert_eq!(with("me", "IPv4"), (false, 1));
    assert_eq!(with("me", "FQDN"), (false, 0), "names are nothing to kube-proxy either");
}

#[test]
fn workload_entry() {
    let Object::WorkloadEntry(entry) = accepted(
        r"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: shop}
spec:
  address: 192.0.2.7
  ports: {http: 8080}
  labels: {app: db}
  network: ''
  locality: eu/eu-1
  weight: 3
  serviceAccount: db
status: {whatever: [1]}
",
    ) else {
        panic!("not an entry")
    };
    assert_eq!(entry.address, Some("192.0.2.7".parse().unwrap()));
    assert_eq!(entry.ports.into_iter().collect::<Vec<_>>(), [("http".to_owned(), 8080)]);
    assert_eq!(entry.labels, labels([("app", "db")]));
    let locality = LocalityText { region: "eu".to_owned(), zone: "eu-1".to_owned(), subzone: String::new() };
    assert_eq!((entry.locality, entry.weight, entry.service_account.as_str()), (locality, Some(3), "db"));
    let named = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm}\nspec: \
                 {address: db.example}";
    assert!(matches!(accepted(named), Object::WorkloadEntry(entry) if entry.address.is_none()));
}

#[test]
fn authorization_policy() {
    let Object::AuthorizationPolicy(policy) = accepted(
        r#"
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules:
  - from:
    - source: {principals: ["*/sa/web"], notNamespaces: [legacy], ipBlocks: ["10.0.0.0/8", "2001:db8::1"]}
    - source: {serviceAccounts: [shop/web, web]}
    to:
    - operation: {ports: ["80", "8080"], methods: [GET]}
    when:
    - {key: source.ip, notValues: ["192.0.2.1"]}
    - {key: "request.headers[x-id]", values: ["1"]}
  - {}
"#,
    ) else {
        panic!("not a policy")
    };
    assert_eq!((policy.action, policy.rules.len()), (PolicyAction::Deny, 2));
    assert_eq!(policy.selector, labels([("app", "cart")]));
    assert_eq!(policy.metadata.annotations, labels([("istio.io/dry-run", "true")]));
    let rule = &policy.rules[0];
    let blocks: Vec<_> = rule.from[0].ip_blocks.iter().map(|block| block.0.to_string()).collect();
    assert_eq!(blocks, ["10.0.0.0/8", "2001:db8::1/128"]);
    assert_eq!(rule.from[1].service_accounts, ["shop/web", "web"]);
    assert_eq!(rule.to[0].ports, [80, 8080]);
    assert_eq!(rule.when[1].key, "request.headers[x-id]");
    assert!(
        policy.rules[1].from.is_empty() && policy.rules[1].to.is_empty() && policy.rules[1].when.is_empty()
    );
}

#[test]
fn policies_that_say_little() {
    for spec in ["", "spec:", "spec: {}", "spec: {action: ALLOW, rules: []}"] {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\n{spec}"
        );
        let Object::AuthorizationPolicy(policy) = accepted(&text) else { panic!("{spec}") };
        assert_eq!((policy.action, policy.rules.len()), (PolicyAction::Allow, 0), "{spec}");
    }
    let attached = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, \
                    namespace: shop}\nspec: {targetRefs: [{kind: Service, name: cart, namespace: shop}]}";
    let Object::AuthorizationPolicy(policy) = accepted(attached) else { panic!() };
    let target = TargetRef { group: String::new(), kind: "Service".to_owned(), name: "cart".to_owned() };
    assert_eq!(policy.target_refs, [target]);
}

#[test]
fn peer_authentication() {
    let Object::PeerAuthentication(policy) = accepted(
        r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: a, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  mtls: {mode: STRICT}
  portLevelMtls:
    8080: {mode: PERMISSIVE}
    '9090': {}
",
    ) else {
        panic!("not a policy")
    };
    assert_eq!(policy.mode, MtlsMode::Strict);
    assert_eq!(
        policy.port_modes.into_iter().collect::<Vec<_>>(),
        [(8080, MtlsMode::Permissive), (9090, MtlsMode::Unset)]
    );
}

/// One policy with `spec` in it.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: \
         shop}}\nspec: {spec}"
    )
}

#[test]
fn mistakes_in_authorization_policies() {
    let rows = [
        (
            "bad CIDR",
            "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/8, 10.0.0.0/33]}}]}]}",
            "spec.rules[0].from[0].source.ipBlocks[1]: \"10.0.0.0/33\" is neither an IP address nor a CIDR \
             block",
        ),
        ("unknown action", "{action: ALOW}", "spec.action: \"ALOW\" is none of ALLOW, DENY, AUDIT, CUSTOM"),
        (
            "unknown field",
            "{rules: [{from: [{source: {notIpBlock: [10.0.0.1]}}]}]}",
            "spec.rules[0].from[0].source.notIpBlock: unknown field `notIpBlock`",
        ),
        ("unknown field on top", "{rule: []}", "spec.rule: unknown field `rule`"),
        (
            "port out of range",
            "{rules: [{to: [{operation: {ports: ['80', '65536']}}]}]}",
            "spec.rules[0].to[0].operation.ports[1]: \"65536\" is not a port",
        ),
        (
            "port as a number",
            "{rules: [{to: [{operation: {ports: [80]}}]}]}",
            "spec.rules[0].to[0].operation.ports[0]: invalid type: integer `80`, expected a string",
        ),
        ("empty from", "{rules: [{from: []}]}", "spec.rules[0].from: is empty"),
        ("empty to", "{rules: [{to: []}]}", "spec.rules[0].to: is empty"),
        ("no source", "{rules: [{from: [{}]}]}", "spec.rules[0].from[0]: missing field `source`"),
        (
            "empty source",
            "{rules: [{from: [{source: {}}]}]}",
            "spec.rules[0].from[0].source: has no condition",
        ),
        (
            "empty principal",
            "{rules: [{from: [{source: {principals: ['']}}]}]}",
            "spec.rules[0].from[0].source.principals[0]: is empty",
        ),
        ("null rule", "{rules: [null]}", "spec.rules[0]: "),
        ("deny without rules", "{action: DENY}", "spec.rules: DENY without rules never denies"),
        ("deny with no rules", "{action: DENY, rules: []}", "spec.rules: DENY without rules never denies"),
        ("provider", "{action: DENY, provider: {name: x}, rules: [{}]}", "spec.provider: "),
        (
            "selector and target",
            "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: a}]}",
            "spec: only one of selector, targetRef and targetRefs",
        ),
        (
            "target elsewhere",
            "{targetRef: {kind: Service, name: a, namespace: other}}",
            "spec.targetRef.namespace: a policy is attached within its own namespace",
        ),
        (
            "wildcard selector",
            "{selector: {matchLabels: {app: '*'}}}",
            "spec.selector.matchLabels[\"app\"]: wildcards",
        ),
        (
            "account and namespace",
            "{rules: [{from: [{source: {serviceAccounts: [a/b], namespaces: [a]}}]}]}",
            "spec.rules[0].from[0].source: service accounts cannot be combined",
        ),
        (
            "account of too many parts",
            "{rules: [{from: [{source: {notServiceAccounts: [a/b/c]}}]}]}",
            "spec.rules[0].from[0].source.notServiceAccounts[0]: \"a/b/c\" is not",
        ),
        (
            "account with a wildcard",
            "{rules: [{from: [{source: {serviceAccounts: ['shop/*']}}]}]}",
            "spec.rules[0].from[0].source.serviceAccounts[0]: \"shop/*\" is not",
        ),
        ("when nothing", "{rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0]: needs values"),
        (
            "when of an unknown attribute",
            "{rules: [{when: [{key: source.ipp, values: [a]}]}]}",
            "spec.rules[0].when[0].key: \"source.ipp\" is not an attribute",
        ),
        (
            "when of a header without name",
            "{rules: [{when: [{key: 'request.headers[]', values: [a]}]}]}",
            "spec.rules[0].when[0].key: \"request.headers[]\" needs a name",
        ),
        (
            "when with a bad address",
            "{rules: [{when: [{key: source.ip, values: [1.2.3]}]}]}",
            "spec.rules[0].when[0].values[0]: \"1.2.3\" is neither",
        ),
        (
            "when with a bad port",
            "{rules: [{when: [{key: destination.port, notValues: [http]}]}]}",
            "spec.rules[0].when[0].notValues[0]: \"http\" is not a port",
        ),
    ];
    for (name, spec, expected) in rows {
        let (object, mistakes) = rejected(&policy(spec));
        assert_eq!(object.as_deref(), Some("AuthorizationPolicy shop/p"), "{name}");
        assert!(mistakes.len() == 1 && mistakes[0].starts_with(expected), "{name}: {mistakes:?}");
    }
}

#[test]
fn mistakes_in_other_kinds() {
    let rows = [
        (
            "mode",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: \
             {mode: BLAH}}",
            "PeerAuthentication default/a",
            "spec.mtls.mode: \"BLAH\" is none of",
        ),
        (
            "port without selector",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: \
             {portLevelMtls: {'80': {mode: STRICT}}}",
            "PeerAuthentication default/a",
            "spec.portLevelMtls: needs a selector",
        ),
        (
            "port level port",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: \
             {selector: {matchLabels: {a: b}}, portLevelMtls: {'0': {mode: STRICT}}}",
            "PeerAuthentication default/a",
            "spec.portLevelMtls[0]: \"0\" is not a port",
        ),
        (
            "entry without address",
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}\nspec: {}",
            "WorkloadEntry default/a",
            "spec.address: missing",
        ),
        (
            "entry without spec",
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}",
            "WorkloadEntry default/a",
            "missing field `spec`",
        ),
        (
            "entry's port",
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}\nspec: {address: \
             1.1.1.1, ports: {http: 99999}}",
            "WorkloadEntry default/a",
            "spec.ports.http: 99999 is not a port",
        ),
        (
            "pod's address",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b}\nspec: {containers: []}\nstatus: \
             {podIPs: [{ip: 10.0.0}]}",
            "Pod b/a",
            "status.podIPs[0].ip: \"10.0.0\" is not an IP address",
        ),
        (
            "pod's port",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, ports: \
             [{containerPort: 70000}]}]}",
            "Pod default/a",
            "spec.containers[0].ports[0].containerPort: 70000 is not a port",
        ),
        (
            "pod without spec",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}",
            "Pod default/a",
            "spec: missing",
        ),
        (
            "label that is no text",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {version: 1}}",
            "Namespace a",
            "metadata.labels.version: invalid type: integer `1`, expected a string",
        ),
        (
            "service account that would forge an identity",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [], serviceAccountName: \
             a/sa/b}",
            "Pod default/a",
            "spec.serviceAccountName: \"a/sa/b\" is not a name",
        ),
        (
            "namespace that is no label",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a.b}\nspec: {containers: []}",
            "Pod a.b/a",
            "metadata.namespace: \"a.b\" is not a DNS label",
        ),
        (
            "service's target port",
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80, targetPort: \
             70000}]}",
            "Service default/a",
            "spec.ports[0].targetPort: 70000 is not a port",
        ),
        (
            "version",
            "apiVersion: security.istio.io/v9\nkind: AuthorizationPolicy\nmetadata: {name: a}",
            "AuthorizationPolicy default/a",
            "apiVersion: \"security.istio.io/v9\" is not a version",
        ),
    ];
    for (name, text, object, expected) in rows {
        let (found, mistakes) = rejected(text);
        assert_eq!(found.as_deref(), Some(object), "{name}");
        assert!(mistakes.len() == 1 && mistakes[0].starts_with(expected), "{name}: {mistakes:?}");
    }
}

#[test]
fn documents_without_a_name() {
    let rows = [
        ("no kind", "apiVersion: v1\nmetadata: {name: a}", "kind: missing"),
        ("no version", "kind: Pod\nmetadata: {name: a}", "apiVersion: missing"),
        ("no metadata", "apiVersion: v1\nkind: Namespace", "metadata.name: missing"),
        ("no name", "apiVersion: v1\nkind: Service\nmetadata: {}\nspec: {}", "metadata.name: missing"),
        (
            "a policy misspelt",
            "apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy\nmetadata: {name: a}",
            "kind: \"AuthorisationPolicy\" is not a kind of security.istio.io/v1",
        ),
        ("text", "hello", "an object is a mapping"),
        ("a sequence", "- a\n- b", "an object is a mapping"),
    ];
    for (name, text, expected) in rows {
        let (object, mistakes) = rejected(text);
        assert_eq!(object, None, "{name}");
        assert!(mistakes[0].starts_with(expected), "{name}: {mistakes:?}");
    }
}

#[test]
fn every_mistake_is_said_at_once() {
    let (_, mistakes) = rejected(&policy(
        "{action: NO, selector: {matchLabels: {a: '*'}}, rules: [{from: [{source: {ipBlocks: [x, y]}}]}]}",
    ));
    assert_eq!(mistakes.len(), 4, "{mistakes:?}");
}

#[test]
fn neighbours_and_strangers() {
    let text = "
apiVersion: v1
kind: Namespace
metadata: {name: one}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
---
apiVersion: [
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: two}}
- {apiVersion: v1, kind: Namespace, metadata: {name: TWO}}
";
    let outline: Vec<String> = parse(text)
        .into_iter()
        .map(|document| {
            let said = match document.outcome {
                Outcome::Accepted { object, .. } => format!("accepted {}", object.key()),
                Outcome::Ignored { what } => format!("ignored {what}"),
                Outcome::Rejected { object, .. } => {
                    format!("rejected {}", object.map_or("?".to_owned(), |key| key.to_string()))
                }
            };
            format!("{}: {said}", document.place)
        })
        .collect();
    assert_eq!(
        outline,
        [
            "line 1: accepted Namespace one",
            "line 5: ignored ConfigMap shop/settings (v1)",
            "line 9: rejected ?",
            "line 11, items[0]: accepted Namespace two",
            "line 11, items[1]: rejected Namespace TWO",
        ]
    );
}

/// Trees that look like objects: our field names, values of any type.
fn tree() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "",
        "a",
        "shop",
        "v1",
        "None",
        "TCP",
        "80",
        "-1",
        "10.0.0.1",
        "::1",
        "10.0.0.0/8",
        "STRICT",
        "DENY",
        "*",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.prop_map(Value::from),
    ];
    let field = prop::sample::select(vec![
        "metadata",
        "name",
        "namespace",
        "labels",
        "spec",
        "status",
        "rules",
        "from",
        "source",
        "ipBlocks",
        "to",
        "operation",
        "ports",
        "when",
        "key",
        "values",
        "selector",
        "matchLabels",
        "mtls",
        "mode",
        "portLevelMtls",
        "containers",
        "containerPort",
        "podIPs",
        "ip",
        "clusterIPs",
        "port",
        "targetPort",
        "addressType",
        "endpoints",
        "addresses",
        "conditions",
        "address",
        "action",
        "livenessProbe",
        "httpGet",
        "80",
    ]);
    leaf.prop_recursive(6, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(field.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_survived(text in ".{0,200}") {
        parse(&text);
    }

    #[test]
    fn anything_like_yaml_is_survived(text in "([a-c]|: |- |\n|\n---\n|\n...\n|  |\\[|\\]|\\{|\\}|,|'|\"|&a|\\*a|!t|\\||<<|#|%|0|\t){0,60}") {
        parse(&text);
    }

    #[test]
    fn any_object_is_survived(mut value in tree(), kind in 0_usize..7) {
        let (version, name) = [
            ("v1", "Namespace"),
            ("v1", "Pod"),
            ("v1", "Service"),
            ("discovery.k8s.io/v1", "EndpointSlice"),
            ("networking.istio.io/v1", "WorkloadEntry"),
            ("security.istio.io/v1", "AuthorizationPolicy"),
            ("security.istio.io/v1", "PeerAuthentication"),
        ][kind];
        if let Value::Object(map) = &mut value {
            map.insert("apiVersion".to_owned(), version.into());
            map.insert("kind".to_owned(), name.into());
        }
        let text = serde_json::to_string(&value).expect("a tree of values");
        let documents = parse(&text);
        // What is accepted is accepted again, unchanged, from the source that is kept of it.
        for document in documents {
            if let Outcome::Accepted { object, source } = document.outcome {
                let again = parse(&source.to_string());
                prop_assert_eq!(again.len(), 1);
                prop_assert_eq!(&again[0].outcome, &Outcome::Accepted { object, source });
            }
        }
    }
}

#[test]
fn kinds_have_one_spelling() {
    for kind in [
        Kind::Namespace,
        Kind::Pod,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::WorkloadEntry,
        Kind::AuthorizationPolicy,
        Kind::PeerAuthentication,
    ] {
        let group = match kind {
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            Kind::WorkloadEntry => "networking.istio.io/v1",
            Kind::AuthorizationPolicy | Kind::PeerAuthentication => "security.istio.io/v1",
            _ => "v1",
        };
        assert!(matches!(known(group, &kind.to_string()), Known::Ours(found) if found == kind), "{kind}");
    }
}
