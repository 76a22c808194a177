//! Objects → workloads and services.

use ambit_core::derive::{
    ContainerPort, Kind, LocalityText, Metadata, Object, Owner, Phase, Pod, PortRef, Service,
    TrafficDistribution, Transport, WorkloadEntry,
};
use ambit_core::mesh::Change;
use ambit_core::model::{
    AppProtocol, Health, LoadBalancingMode, LocalityScope, NetworkMode, PortMapping, TunnelProtocol,
    Workload, WorkloadKind, WorkloadUid,
};

use crate::build::{captures, ip, service_key, uid};
use crate::objects::{Lab, container_port, key, metadata, namespace, pod, put, service, service_port};

fn workload(lab: &Lab, name: &str) -> Workload {
    Workload::clone(lab.mesh.workload(&uid(name)).unwrap_or_else(|| panic!("{name} is a workload")))
}

#[test]
fn enrolment_by_labels() {
    let mode = |value| vec![("istio.io/dataplane-mode", value)];
    let host = |pod: Pod| Pod { host_network: true, ..pod };
    let rows: Vec<(&str, &str, Vec<(&str, &str)>, bool, bool)> = vec![
        ("no label", "", vec![], false, false),
        ("the namespace, Istio's word", "ambient", vec![], false, true),
        ("the namespace, ours", "ambit", vec![], false, true),
        ("the namespace, another mesh's", "sidecar", vec![], false, false),
        ("the namespace opts out", "none", vec![], false, false),
        ("the pod alone", "", mode("ambient"), false, true),
        ("the pod alone, our word", "", mode("ambit"), false, true),
        ("the pod against its namespace", "none", mode("ambient"), false, true),
        ("the pod opts out", "ambient", mode("none"), false, false),
        ("an unknown value on the pod", "ambient", mode("turbo"), false, true),
        ("the pod has its node's network", "ambient", vec![], true, false),
        ("and asks for it", "", mode("ambient"), true, false),
    ];
    for (name, namespace_mode, labels, host_network, enrolled) in rows {
        let subject = pod("shop/cart", &labels, &["10.1.0.1"]);
        let subject = if host_network { host(subject) } else { subject };
        let lab = Lab::new([namespace("shop", namespace_mode), Object::Pod(subject)]);
        assert_eq!(workload(&lab, "shop/cart").in_mesh(), enrolled, "{name}");
        assert_eq!(captures(&lab.mesh, ip("10.1.0.1")), enrolled, "{name}: captured");
    }
}

#[test]
fn a_namespace_label_enrols_existing_pods() {
    let mut lab = Lab::new([
        Object::Pod(pod("shop/a", &[], &["10.1.0.1"])),
        Object::Pod(pod("blog/b", &[], &["10.1.0.2"])),
    ]);
    assert!(!workload(&lab, "shop/a").in_mesh(), "the namespace is not known yet");
    let (derived, touched) = lab.put([namespace("shop", "ambient")]);
    assert_eq!(derived.changes.len(), 1);
    assert_eq!(touched.workloads, [uid("shop/a")].into());
    assert!(workload(&lab, "shop/a").in_mesh());
    assert!(lab.put([namespace("shop", "ambient")]).0.changes.is_empty(), "the same again changes nothing");
    lab.delete(Kind::Namespace, "shop");
    assert!(!workload(&lab, "shop/a").in_mesh());
}

#[test]
fn a_pod_from_scheduling_to_its_end() {
    let selector = [("app", "cart")];
    let cart = service("shop/cart", &["10.96.0.1"], &selector, vec![service_port(80, "8080")]);
    let mut lab = Lab::new([namespace("shop", "ambient"), Object::Service(cart)]);
    let fresh = || pod("shop/cart-1", &selector, &[]);
    let endpoints = |lab: &Lab| lab.mesh.endpoints(&service_key("shop/cart")).count();

    lab.put([Object::Pod(Pod { node: String::new(), phase: Phase::Pending, ready: false, ..fresh() })]);
    assert!(lab.mesh.workload(&uid("shop/cart-1")).is_none(), "not scheduled: nothing to tell");

    lab.put([Object::Pod(Pod { phase: Phase::Pending, ready: false, ..fresh() })]);
    let scheduled = workload(&lab, "shop/cart-1");
    assert!(
        scheduled.in_mesh() && scheduled.addresses.is_empty(),
        "its node may prepare before it has an address"
    );

    let starting = Pod { addresses: vec![ip("10.1.0.1")], ready: false, ..fresh() };
    lab.put([Object::Pod(starting.clone())]);
    assert_eq!((workload(&lab, "shop/cart-1").health, endpoints(&lab)), (Health::Unhealthy, 1));
    assert!(captures(&lab.mesh, ip("10.1.0.1")));

    lab.put([Object::Pod(Pod { ready: true, ..starting.clone() })]);
    assert_eq!(workload(&lab, "shop/cart-1").health, Health::Healthy);

    lab.put([Object::Pod(Pod { ready: true, terminating: true, ..starting.clone() })]);
    assert_eq!(workload(&lab, "shop/cart-1").health, Health::Draining, "it is ending and still serves");
    lab.put([Object::Pod(Pod { terminating: true, ..starting.clone() })]);
    assert_eq!(workload(&lab, "shop/cart-1").health, Health::Unhealthy, "it is ending and serves no more");
    assert_eq!(endpoints(&lab), 1);

    let relabelled =
        Pod { metadata: metadata("shop/cart-1", &[("app", "other")]), ready: true, ..starting.clone() };
    lab.put([Object::Pod(relabelled)]);
    assert_eq!(endpoints(&lab), 0, "no longer selected");

    let (derived, _) = lab.put([Object::Pod(Pod { phase: Phase::Succeeded, ..starting })]);
    assert_eq!(derived.changes, [Change::RemoveWorkload(uid("shop/cart-1"))]);
    assert!(!captures(&lab.mesh, ip("10.1.0.1")), "a finished pod has released its address");
}

#[test]
fn a_finished_pods_address_belongs_to_its_next_pod() {
    for phase in [Phase::Succeeded, Phase::Failed] {
        let old = Pod { phase, ..pod("shop/a-job", &[], &["10.1.0.1"]) };
        let new = pod("shop/b-cart", &[], &["10.1.0.1"]);
        let mut lab = Lab::new([namespace("shop", "ambient"), Object::Pod(old.clone()), Object::Pod(new)]);
        let owner = |lab: &Lab| lab.mesh.workload_by_address(ip("10.1.0.1")).map(|w| w.name.to_string());
        assert_eq!(owner(&lab).as_deref(), Some("b-cart"), "{phase:?}");
        lab.put([Object::Pod(Pod { ready: false, ..old })]);
        assert_eq!(owner(&lab).as_deref(), Some("b-cart"), "{phase:?}: news of the old one change nothing");
        lab.delete(Kind::Pod, "shop/a-job");
        assert_eq!(owner(&lab).as_deref(), Some("b-cart"), "{phase:?}: nor does its end");
    }
}

#[test]
fn addresses_are_canonical_and_distinct() {
    let lab = Lab::new([Object::Pod(pod("shop/cart", &[], &["::ffff:10.1.0.1", "10.1.0.1", "fd00::1"]))]);
    assert_eq!(workload(&lab, "shop/cart").addresses, [ip("10.1.0.1"), ip("fd00::1")]);
}

#[test]
fn host_network_pods_are_endpoints_without_an_address_of_their_own() {
    let api = service("kube/api", &["10.96.0.1"], &[("app", "api")], vec![service_port(443, "6443")]);
    let host = Pod { host_network: true, ..pod("kube/api-1", &[("app", "api")], &["192.168.0.1"]) };
    let lab = Lab::new([namespace("kube", "ambient"), Object::Service(api), Object::Pod(host)]);
    let workload = workload(&lab, "kube/api-1");
    assert_eq!((workload.network_mode, workload.protocol), (NetworkMode::HostNetwork, TunnelProtocol::None));
    assert_eq!(lab.mesh.endpoints(&service_key("kube/api")).count(), 1);
    assert!(lab.mesh.workload_by_address(ip("192.168.0.1")).is_none());
    assert!(!captures(&lab.mesh, ip("10.96.0.1")));
}

#[test]
fn named_and_numbered_target_ports_resolve() {
    let ports = vec![
        service_port(80, "8080"),
        service_port(81, "web"),
        service_port(82, "missing"),
        service_port(83, "dns"),
        ambit_core::derive::ServicePort { transport: Transport::Udp, ..service_port(53, "5353") },
    ];
    let cart = service("shop/cart", &["10.96.0.1"], &[("app", "cart")], ports);
    let udp = ContainerPort { transport: Transport::Udp, ..container_port("dns", 5353) };
    let with_ports = |name: &str, web| Pod {
        ports: vec![container_port("web", web), udp.clone()],
        ..pod(name, &[("app", "cart")], &["10.1.0.1"])
    };
    let lab = Lab::new([
        Object::Service(cart),
        Object::Pod(with_ports("shop/a", 3000)),
        Object::Pod(with_ports("shop/b", 4000)),
    ]);
    let mapped = |name: &str| workload(&lab, name).services[&service_key("shop/cart")].clone();
    let mapping = |service_port, target_port| PortMapping { service_port, target_port };
    assert_eq!(
        mapped("shop/a"),
        [mapping(80, 8080), mapping(81, 3000)],
        "UDP and names it lacks are left out"
    );
    assert_eq!(mapped("shop/b"), [mapping(80, 8080), mapping(81, 4000)], "each pod has its own named ports");
    let service = lab.mesh.service(&service_key("shop/cart")).expect("a service");
    let declared: Vec<_> = service.ports.iter().map(|port| (port.port, port.target_port)).collect();
    assert_eq!(declared, [(80, 8080), (81, 0), (82, 0), (83, 0)]);
}

#[test]
fn services_are_derived() {
    let plain = || service("shop/cart", &["10.96.0.1"], &[("app", "cart")], vec![service_port(80, "8080")]);
    let dual = Service {
        cluster_ips: vec![ip("10.96.0.1"), ip("fd96::1")],
        external_ips: vec![ip("203.0.113.1"), ip("10.96.0.1")],
        publish_not_ready: true,
        ..plain()
    };
    let lab = Lab::new([Object::Service(dual)]);
    let derived = lab.mesh.service(&service_key("shop/cart")).expect("a service");
    assert_eq!(derived.addresses, [ip("10.96.0.1"), ip("fd96::1"), ip("203.0.113.1")], "each once");
    assert!(derived.load_balancing.allow_unhealthy);
    assert_eq!(&*derived.name, "cart");

    let headless = Service { cluster_ips: Vec::new(), ..plain() };
    let mut lab =
        Lab::new([Object::Service(headless), Object::Pod(pod("shop/a", &[("app", "cart")], &["10.1.0.1"]))]);
    assert_eq!(
        lab.mesh.endpoints(&service_key("shop/cart")).count(),
        1,
        "a headless service has endpoints too"
    );

    lab.put([Object::Service(Service { external_name: true, ..plain() })]);
    assert!(lab.mesh.service(&service_key("shop/cart")).is_none(), "a DNS alias is nothing to the mesh");
    assert_eq!(lab.mesh.endpoints(&service_key("shop/cart")).count(), 0);

    lab.put([Object::Service(Service { selector: [].into(), ports: Vec::new(), ..plain() })]);
    assert_eq!(lab.mesh.endpoints(&service_key("shop/cart")).count(), 0, "no selector selects nothing");
    assert!(lab.mesh.service(&service_key("shop/cart")).expect("there").ports.is_empty());
}

#[test]
fn load_balancing_is_derived() {
    use LocalityScope::{Network, Node, Region, Subzone, Zone};
    let rows = [
        (false, TrafficDistribution::Unset, LoadBalancingMode::Unspecified, vec![]),
        (true, TrafficDistribution::Unset, LoadBalancingMode::Strict, vec![Node]),
        (true, TrafficDistribution::PreferSameZone, LoadBalancingMode::Strict, vec![Node]),
        (
            false,
            TrafficDistribution::PreferSameZone,
            LoadBalancingMode::Failover,
            vec![Network, Region, Zone],
        ),
        (
            false,
            TrafficDistribution::PreferSameNode,
            LoadBalancingMode::Failover,
            vec![Network, Region, Zone, Subzone, Node],
        ),
    ];
    for (node_local, traffic_distribution, mode, preference) in rows {
        let cart = service("shop/cart", &["10.96.0.1"], &[], vec![]);
        let lab = Lab::new([Object::Service(Service { node_local, traffic_distribution, ..cart })]);
        let rule = &lab.mesh.service(&service_key("shop/cart")).expect("a service").load_balancing;
        assert_eq!(
            (rule.mode, &rule.routing_preference),
            (mode, &preference),
            "{node_local} {traffic_distribution:?}"
        );
    }
}

#[test]
fn application_protocols() {
    let rows = [
        ("", "", AppProtocol::Unknown),
        ("web", "", AppProtocol::Unknown),
        ("http", "", AppProtocol::Http11),
        ("http-web", "", AppProtocol::Http11),
        ("http2-web", "", AppProtocol::Http2),
        ("grpc-api", "", AppProtocol::Grpc),
        ("https", "", AppProtocol::Tls),
        ("tcp-db", "", AppProtocol::Tcp),
        ("tcp-db", "grpc", AppProtocol::Grpc),
        ("", "kubernetes.io/h2c", AppProtocol::Http2),
        ("", "HTTP", AppProtocol::Http11),
    ];
    for (name, app_protocol, expected) in rows {
        let mut port = service_port(80, "8080");
        (port.name, port.app_protocol) = (name.into(), app_protocol.into());
        let lab = Lab::new([Object::Service(service("shop/cart", &[], &[], vec![port]))]);
        let derived = lab.mesh.service(&service_key("shop/cart")).expect("a service").ports[0].app_protocol;
        assert_eq!(derived, expected, "{name:?} {app_protocol:?}");
    }
}

#[test]
fn selectors_that_overlap() {
    let of = |name: &str, selector: &[(&str, &str)]| {
        Object::Service(service(name, &[], selector, vec![service_port(80, "8080")]))
    };
    let mut lab = Lab::new([
        of("shop/all", &[("app", "cart")]),
        of("shop/v2", &[("app", "cart"), ("version", "v2")]),
        of("blog/all", &[("app", "cart")]),
        Object::Pod(pod("shop/a", &[("app", "cart"), ("version", "v1")], &["10.1.0.1"])),
        Object::Pod(pod("shop/b", &[("app", "cart"), ("version", "v2")], &["10.1.0.2"])),
    ]);
    let names = |lab: &Lab, service: &str| {
        lab.mesh.endpoints(&service_key(service)).map(|w| w.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&lab, "shop/all"), ["a", "b"]);
    assert_eq!(names(&lab, "shop/v2"), ["b"]);
    assert!(names(&lab, "blog/all").is_empty(), "selectors end at their namespace");

    lab.put([of("shop/v2", &[("version", "v1")])]);
    assert_eq!(names(&lab, "shop/v2"), ["a"], "what the old selector selected is let go");
    lab.delete(Kind::Service, "shop/v2");
    assert!(names(&lab, "shop/v2").is_empty());
    assert_eq!(workload(&lab, "shop/a").services.len(), 1);
}

#[test]
fn names_of_owners_for_metrics() {
    let owned = |kind: &str, owner: &str| Some(Owner { kind: kind.into(), name: owner.into() });
    let hash = ("pod-template-hash", "5d8f");
    let rows: Vec<(&str, Option<Owner>, Vec<(&str, &str)>, WorkloadKind, &str)> = vec![
        ("unmanaged", None, vec![], WorkloadKind::Pod, "cart-x"),
        ("a deployment's", owned("ReplicaSet", "cart-5d8f"), vec![hash], WorkloadKind::Deployment, "cart"),
        ("a bare replica set's", owned("ReplicaSet", "cart-5d8f"), vec![], WorkloadKind::Pod, "cart-x"),
        (
            "a hash that is not the name's",
            owned("ReplicaSet", "cart-77"),
            vec![hash],
            WorkloadKind::Pod,
            "cart-x",
        ),
        ("a job's", owned("Job", "load"), vec![], WorkloadKind::Job, "load"),
        ("a cron job's", owned("Job", "load-28912345"), vec![], WorkloadKind::CronJob, "load"),
        ("a job with a number", owned("Job", "load-7"), vec![], WorkloadKind::Job, "load-7"),
        ("a stateful set's", owned("StatefulSet", "db"), vec![], WorkloadKind::Pod, "cart-x"),
    ];
    for (name, owner, labels, kind, workload_name) in rows {
        let lab = Lab::new([Object::Pod(Pod { owner, ..pod("shop/cart-x", &labels, &["10.1.0.1"]) })]);
        let workload = workload(&lab, "shop/cart-x");
        assert_eq!((workload.kind, &*workload.workload_name), (kind, workload_name), "{name}");
        assert_eq!(
            (&*workload.canonical_name, &*workload.canonical_revision),
            (workload_name, "latest"),
            "{name}"
        );
    }
    let labels = [
        ("app", "a"),
        ("app.kubernetes.io/name", "b"),
        ("version", "v1"),
        ("app.kubernetes.io/version", "v2"),
    ];
    let lab = Lab::new([Object::Pod(pod("shop/cart-x", &labels, &["10.1.0.1"]))]);
    let workload = workload(&lab, "shop/cart-x");
    assert_eq!((&*workload.canonical_name, &*workload.canonical_revision), ("b", "v2"));
}

#[test]
fn identity_locality_and_probes() {
    let labels = [("topology.kubernetes.io/region", "eu"), ("topology.kubernetes.io/zone", "a")];
    let subject = Pod {
        service_account: "cart".into(),
        ports: vec![container_port("health", 8081)],
        probes: vec![
            PortRef::Number(9090),
            PortRef::Name("health".into()),
            PortRef::Name("gone".into()),
            PortRef::Number(8081),
        ],
        ..pod("shop/cart", &labels, &["10.1.0.1"])
    };
    let lab = Lab::new([Object::Pod(subject), Object::Pod(pod("shop/plain", &[], &["10.1.0.2"]))]);
    let cart = workload(&lab, "shop/cart");
    assert_eq!(cart.identity().to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!((&*cart.locality.region, &*cart.locality.zone), ("eu", "a"));
    assert_eq!(cart.probe_ports, [8081, 9090]);
    assert_eq!(&*workload(&lab, "shop/plain").service_account, "default");
}

#[test]
fn workload_entries() {
    let entry = |labels: &[(&str, &str)], address: Option<&str>| WorkloadEntry {
        metadata: metadata("shop/vm", labels),
        address: address.map(ip),
        ports: [("web".to_owned(), 3000)].into(),
        labels: [("app".to_owned(), "cart".to_owned())].into(),
        locality: LocalityText { region: "eu".into(), ..LocalityText::default() },
        weight: Some(7),
        service_account: "vm".into(),
        ..WorkloadEntry::default()
    };
    let cart = service("shop/cart", &["10.96.0.1"], &[("app", "cart")], vec![service_port(80, "web")]);
    let mut lab = Lab::new([
        namespace("shop", "ambient"),
        Object::Service(cart),
        Object::WorkloadEntry(entry(&[], Some("10.7.0.1"))),
    ]);
    let uid = WorkloadUid("Kubernetes/networking.istio.io/WorkloadEntry/shop/vm".into());
    let vm = |lab: &Lab| Workload::clone(lab.mesh.workload(&uid).expect("a workload"));
    let first = vm(&lab);
    assert!(!first.in_mesh(), "a namespace's label says nothing about machines");
    assert_eq!((first.capacity, &*first.service_account, &*first.locality.region), (7, "vm", "eu"));
    assert_eq!(
        first.services[&service_key("shop/cart")],
        [PortMapping { service_port: 80, target_port: 3000 }]
    );

    for labels in [[("networking.istio.io/tunnel", "http")], [("istio.io/dataplane-mode", "ambit")]] {
        lab.put([Object::WorkloadEntry(entry(&labels, Some("10.7.0.1")))]);
        assert!(vm(&lab).in_mesh(), "{labels:?}");
    }

    for (address, says) in [(None, "no address"), (Some("127.0.0.1"), "127.0.0.1"), (Some("::"), "::")] {
        lab.put([Object::WorkloadEntry(entry(&[], address))]);
        assert!(vm(&lab).addresses.is_empty(), "{address:?}");
        let conditions = lab.conditions(Kind::WorkloadEntry, "shop/vm");
        assert_eq!(conditions.len(), 1);
        assert!(
            !conditions[0].accepted && conditions[0].message.contains(says),
            "{address:?}: {conditions:?}"
        );
        assert_eq!(conditions[0].field.as_deref(), Some("spec.address"));
    }
    let (derived, _) = lab.put([Object::WorkloadEntry(entry(&[], Some("10.7.0.1")))]);
    assert!(derived.conditions[0].accepted, "the condition is cleared: {:?}", derived.conditions);
}

#[test]
fn a_batch_is_derived_as_a_whole() {
    let mut lab = Lab::new([namespace("shop", "ambient")]);
    let cart = || Object::Pod(pod("shop/cart", &[], &["10.1.0.1"]));
    let gone = ambit_core::derive::ObjectEvent::Delete(key(Kind::Pod, "shop/cart"));
    let (derived, _) = lab.apply([put(cart()), gone.clone()]);
    assert!(derived.changes.is_empty(), "come and gone");
    lab.put([cart()]);
    let (derived, _) = lab.apply([gone, put(cart())]);
    assert!(derived.changes.is_empty(), "gone and back: {:?}", derived.changes);
}

#[test]
fn pods_have_their_nodes_locality() {
    use ambit_core::derive::Node;
    let node = |labels: &[(&str, &str)]| {
        let metadata = Metadata { namespace: String::new(), ..metadata("/node-a", labels) };
        Object::Node(Node { metadata })
    };
    let (region, zone, subzone) =
        ("topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone");
    let place = |lab: &Lab, pod: &str| {
        let locality = &workload(lab, pod).locality;
        format!("{}/{}/{}", locality.region, locality.zone, locality.subzone)
    };
    let mut lab = Lab::new([
        Object::Pod(pod("shop/a", &[], &["10.1.0.1"])),
        Object::Pod(pod("blog/own", &[(zone, "z9")], &["10.1.0.2"])),
        Object::Pod(Pod { node: "node-b".into(), ..pod("shop/other", &[], &["10.1.0.3"]) }),
    ]);
    assert_eq!(place(&lab, "shop/a"), "//", "the node is not known yet");
    let (_, touched) = lab.put([node(&[(region, "r1"), (zone, "z1"), (subzone, "s1")])]);
    assert_eq!(touched.workloads, [uid("shop/a"), uid("blog/own")].into());
    assert_eq!(place(&lab, "shop/a"), "r1/z1/s1");
    assert_eq!(place(&lab, "blog/own"), "r1/z9/s1", "what a pod says itself counts");
    assert_eq!(place(&lab, "shop/other"), "//", "another node");
    lab.put([node(&[(region, "r2")])]);
    assert_eq!(place(&lab, "shop/a"), "r2//");
    lab.delete(Kind::Node, "node-a");
    assert_eq!(place(&lab, "shop/a"), "//");
}
