//! Kubernetes' own kinds.

use ambit_core::derive::{
    ContainerPort, Metadata, Object, Owner, Phase, PortRef, SliceEndpoint, TrafficDistribution, Transport,
};
use ambit_core::model::Health;

use super::{accepted, labels};

#[test]
fn namespace_fields_are_read() {
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
fn pod_fields_are_read() {
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
fn service_fields_are_read() {
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
  loadBalancer:
    ingress: [{hostname: x.example}, {ip: 192.0.2.2, ipMode: VIP}, {ip: 192.0.2.3, ipMode: Proxy}]
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
fn endpoint_slice_fields_are_read() {
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
- addresses: [10.0.0.1, 10.0.0.2]
  nodeName: node-a
  zone: eu-1
  targetRef: {kind: Pod, name: db-0, namespace: shop}
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
fn endpoint_conditions_become_health() {
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
fn slices_of_selectors_and_of_host_names_have_no_endpoints() {
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
