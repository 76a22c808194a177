//! EndpointSlices: endpoints that no selector finds.

use ambit_core::balance::Avoid;
use ambit_core::derive::{
    EndpointSlice, Kind, Node, Object, Phase, Pod, PortRef, Service, ServicePort, SliceEndpoint, SlicePort,
    Transport,
};
use ambit_core::model::{Health, PortMapping, TunnelProtocol, Workload};
use ambit_core::outbound::{Connection, Plan, plan};

use crate::build::{captures, ip, service_key, socket, uid};
use crate::objects::{Lab, metadata, namespace, pod, service, service_port};

/// A service without selector, and a client in the mesh.
fn world(slices: impl IntoIterator<Item = EndpointSlice>) -> Lab {
    let db = service("shop/db", &["10.96.0.1"], &[], vec![named("sql", 5432), named("admin", 80)]);
    let mut lab = Lab::new([
        namespace("shop", "ambient"),
        Object::Service(db),
        Object::Pod(pod("shop/web", &[], &["10.1.0.7"])),
    ]);
    lab.put(slices.into_iter().map(Object::EndpointSlice));
    lab
}

fn named(name: &str, port: u16) -> ServicePort {
    ServicePort { name: name.into(), ..service_port(port, &port.to_string()) }
}

fn slice(name: &str, endpoints: Vec<SliceEndpoint>) -> EndpointSlice {
    let port = |name: &str, port| SlicePort { name: name.into(), port, transport: Transport::Tcp };
    EndpointSlice {
        metadata: metadata(name, &[]),
        service: "db".into(),
        of_selector: false,
        endpoints,
        ports: vec![port("sql", 15432), port("other", 1)],
    }
}

fn at(address: &str) -> SliceEndpoint {
    SliceEndpoint {
        address: ip(address),
        health: Health::Healthy,
        node: String::new(),
        zone: String::new(),
        pod: None,
    }
}

fn endpoints(lab: &Lab) -> Vec<&Workload> {
    lab.mesh.endpoints(&service_key("shop/db")).map(AsRef::as_ref).collect()
}

fn uids(lab: &Lab) -> Vec<String> {
    endpoints(lab).iter().map(|workload| workload.uid.to_string()).collect()
}

const OUTSIDE: &str = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/10.9.0.1";
const POD: &str = "Kubernetes//Pod/shop/db-0";
const FOREIGN: &str = "Kubernetes//Pod/data/db-0";

#[test]
fn listed_addresses_outside_the_cluster_become_endpoints() {
    let mut lab = world([slice("shop/db-1", vec![at("10.9.0.1")])]);
    assert_eq!(uids(&lab), [OUTSIDE]);
    let outside = endpoints(&lab)[0];
    assert_eq!(outside.protocol, TunnelProtocol::None);
    assert_eq!(
        outside.services[&service_key("shop/db")],
        [PortMapping { service_port: 5432, target_port: 15432 }],
        "ports are matched by name; the service's other port has none"
    );
    assert!(!captures(&lab.mesh, ip("10.96.0.1")), "no enrolled endpoint: not captured");
    assert!(lab.mesh.workload_by_address(ip("10.9.0.1")).is_none(), "a listed address has no workload");
    lab.delete(Kind::EndpointSlice, "shop/db-1");
    assert!(endpoints(&lab).is_empty());
}

#[test]
fn labels_of_a_slice_do_not_enrol_its_endpoints() {
    let mut labelled = slice("shop/db-1", vec![at("10.9.0.1")]);
    labelled.metadata = metadata("shop/db-1", &[("istio.io/dataplane-mode", "ambient"), ("app", "db")]);
    let mut lab = world([labelled]);
    lab.put([Object::Service(service(
        "shop/other",
        &["10.96.0.2"],
        &[("app", "db")],
        vec![named("sql", 1)],
    ))]);
    assert_eq!(endpoints(&lab)[0].protocol, TunnelProtocol::None);
    assert_eq!(endpoints(&lab)[0].services.len(), 1, "no selector selects it");
}

#[test]
fn listed_addresses_of_pods_are_the_pods() {
    let enrolled = || pod("shop/db-0", &[], &["10.9.0.1"]);
    let foreign = || pod("data/db-0", &[], &["10.9.0.1"]);
    let host = || Pod { host_network: true, ..enrolled() };
    let by_name = || SliceEndpoint { pod: Some("db-0".into()), ..at("10.9.0.1") };
    let rows: Vec<(&str, SliceEndpoint, Vec<Pod>, &[&str])> = vec![
        ("a pod's address", at("10.9.0.1"), vec![enrolled()], &[POD]),
        ("of another namespace", at("10.9.0.1"), vec![foreign()], &[FOREIGN]),
        ("named by the slice", by_name(), vec![foreign(), enrolled()], &[POD]),
        ("not named: the first by name", at("10.9.0.1"), vec![foreign(), enrolled()], &[FOREIGN]),
        ("named and not known", by_name(), vec![], &[]),
        ("named with another's address", by_name(), vec![foreign()], &[FOREIGN]),
        ("a pod with its node's network, named", by_name(), vec![host()], &[POD]),
        ("a node's address", at("10.9.0.1"), vec![host()], &[OUTSIDE]),
        (
            "a finished pod's address",
            at("10.9.0.1"),
            vec![Pod { phase: Phase::Failed, ..enrolled() }],
            &[OUTSIDE],
        ),
        ("named, finished", by_name(), vec![Pod { phase: Phase::Failed, ..enrolled() }], &[]),
    ];
    for (name, endpoint, pods, expected) in rows {
        let lab = || world([slice("shop/db-1", vec![endpoint.clone()])]);
        let mut slice_first = lab();
        slice_first.put(pods.iter().cloned().map(Object::Pod));
        assert_eq!(uids(&slice_first), expected, "{name}");
        for pod in &pods {
            slice_first.delete(Kind::Pod, &format!("{}/{}", pod.metadata.namespace, pod.metadata.name));
        }
        assert_eq!(uids(&slice_first), uids(&lab()), "{name}: as before the pods");
    }
}

#[test]
fn connections_to_a_listed_pod_are_tunnelled() {
    let mut lab = world([slice("shop/db-1", vec![at("10.9.0.1")])]);
    let (_, touched) = lab.put([Object::Pod(pod("shop/db-0", &[], &["10.9.0.1"]))]);
    assert!(touched.addresses.contains(&ip("10.96.0.1")), "the service's address is captured from now on");
    assert!(captures(&lab.mesh, ip("10.96.0.1")));
    let flow = Connection { source: uid("shop/web"), destination: socket("10.96.0.1:5432"), chosen: None };
    let Ok(Plan::Tunnel(tunnel)) = plan(&lab.mesh, &flow, &Avoid::NONE, 0) else { panic!("not a tunnel") };
    assert_eq!(
        (tunnel.destination.uid.clone(), tunnel.authority),
        (uid("shop/db-0"), socket("10.9.0.1:15432"))
    );
}

#[test]
fn the_slice_decides_the_health_of_its_endpoints() {
    let with = |health| SliceEndpoint { health, ..at("10.9.0.1") };
    for health in [Health::Healthy, Health::Draining, Health::Unhealthy] {
        let lab = world([slice("shop/db-1", vec![with(health)])]);
        assert_eq!(endpoints(&lab)[0].health, health);
        let mut lab = world([slice("shop/db-1", vec![with(health)])]);
        lab.put([Object::Pod(pod("shop/db-0", &[], &["10.9.0.1"]))]);
        let listed = health != Health::Unhealthy;
        assert_eq!(uids(&lab), if listed { vec![POD] } else { vec![] }, "a pod that is listed as {health:?}");
        let object = service("shop/db", &["10.96.0.1"], &[], vec![named("sql", 5432)]);
        lab.put([Object::Service(Service { publish_not_ready: true, ..object })]);
        assert_eq!(uids(&lab), [POD], "{health:?} with publishNotReadyAddresses");
    }
}

#[test]
fn slices_of_selectors_are_ignored() {
    let of_selector = |name, address| EndpointSlice { of_selector: true, ..slice(name, vec![at(address)]) };
    let mut lab = world([of_selector("shop/db-1", "10.9.0.1")]);
    assert!(endpoints(&lab).is_empty());
    lab.put([Object::EndpointSlice(slice("shop/db-1", vec![at("10.9.0.1")]))]);
    assert_eq!(uids(&lab), [OUTSIDE]);
    lab.put([Object::EndpointSlice(of_selector("shop/db-1", "10.9.0.1"))]);
    assert!(endpoints(&lab).is_empty(), "taken over by Kubernetes");
}

#[test]
fn a_slice_adds_to_a_selectors_endpoints() {
    let mut lab = world([slice("shop/db-1", vec![at("10.9.0.1"), at("10.9.0.2")])]);
    let ports =
        vec![named("sql", 5432), ServicePort { target: PortRef::Name("adm".into()), ..named("admin", 80) }];
    lab.put([
        Object::Service(service("shop/db", &["10.96.0.1"], &[("app", "db")], ports)),
        Object::Pod(pod("shop/db-0", &[("app", "db")], &["10.9.0.1"])),
    ]);
    assert_eq!(uids(&lab), [POD, "Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/10.9.0.2"]);
    let mapped = &endpoints(&lab)[0].services[&service_key("shop/db")];
    assert_eq!(
        *mapped,
        [PortMapping { service_port: 5432, target_port: 5432 }],
        "the selector takes precedence"
    );
}

#[test]
fn slices_follow_their_service() {
    let mut lab = world([slice("shop/db-1", vec![at("10.9.0.1")])]);
    let object = || service("shop/db", &["10.96.0.1"], &[], vec![named("sql", 5432)]);
    lab.delete(Kind::Service, "shop/db");
    assert!(endpoints(&lab).is_empty() && lab.mesh.workloads().count() == 1, "no service, no endpoints");
    lab.put([Object::Service(Service { external_name: true, ..object() })]);
    assert!(endpoints(&lab).is_empty(), "nor for a DNS alias");
    lab.put([Object::Service(object())]);
    assert_eq!(uids(&lab), [OUTSIDE]);
    lab.put([Object::Service(Service { ports: vec![named("other", 99)], ..object() })]);
    let mapped = &endpoints(&lab)[0].services[&service_key("shop/db")];
    assert_eq!(*mapped, [PortMapping { service_port: 99, target_port: 1 }]);
    lab.put([Object::Service(Service { ports: vec![named("unknown", 99)], ..object() })]);
    assert!(endpoints(&lab).is_empty(), "no port of the slice is the service's");
}

#[test]
fn locality_of_listed_endpoints() {
    let labels = [("topology.kubernetes.io/region", "eu"), ("topology.kubernetes.io/zone", "eu-1")];
    let node = Object::Node(Node { metadata: metadata("/node-a", &labels) });
    let rows = [
        ("nothing said", "", "", ("", "")),
        ("a zone", "", "eu-2", ("", "eu-2")),
        ("a node", "node-a", "", ("eu", "eu-1")),
        ("a node and a zone", "node-a", "eu-2", ("eu", "eu-2")),
        ("a node that is not known", "node-b", "", ("", "")),
    ];
    for (name, on, zone, (region, in_zone)) in rows {
        let endpoint = SliceEndpoint { node: on.into(), zone: zone.into(), ..at("10.9.0.1") };
        let mut lab = world([slice("shop/db-1", vec![endpoint])]);
        lab.put([node.clone()]);
        let locality = &endpoints(&lab)[0].locality;
        assert_eq!((&*locality.region, &*locality.zone), (region, in_zone), "{name}");
        assert_eq!(&*endpoints(&lab)[0].node, on, "{name}");
    }
}
