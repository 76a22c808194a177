//! Each kind of service, from the objects to where an enrolled client's connection goes.

use ambit_core::balance::Avoid;
use ambit_core::derive::{Kind, Namespace, Object, Pod, Service, TrafficDistribution};
use ambit_core::model::{Affinity, LoadBalancingMode};
use ambit_core::outbound::{Connection, Plan, plan};

use crate::build::{captures, ip, service_key, socket, uid};
use crate::objects::{Lab, metadata, namespace, pod, service, service_port};

const APP: [(&str, &str); 1] = [("app", "cart")];

fn cart() -> Service {
    service("shop/cart", &["10.96.0.1"], &APP, vec![service_port(80, "8080")])
}

/// Two pods behind the service, one outside the mesh beside them, and a client.
fn lab(service: Service) -> Lab {
    let on = |node: &str, pod: Pod| Object::Pod(Pod { node: node.into(), ..pod });
    Lab::new([
        namespace("shop", "ambient"),
        Object::Service(service),
        on("node-a", pod("shop/web", &[], &["10.1.0.7", "fd01::7"])),
        on("node-a", pod("shop/cart-0", &APP, &["10.1.0.1", "fd01::1"])),
        on("node-b", pod("shop/cart-1", &APP, &["10.1.0.2", "fd01::2"])),
        on("node-b", pod("lone/pod", &[], &["10.1.0.3"])),
    ])
}

/// The destinations of `shop/web`'s connections, over evenly spread random numbers.
fn goes(lab: &Lab, destination: &str) -> Vec<String> {
    let destination = socket(destination);
    if !captures(&lab.mesh, destination.ip()) {
        return vec!["native".into()];
    }
    let flow = Connection { source: uid("shop/web"), destination, chosen: None };
    let mut ways: Vec<String> = (0..16)
        .map(|roll| match plan(&lab.mesh, &flow, &Avoid::NONE, roll * (u64::MAX / 16)) {
            Ok(Plan::Tunnel(tunnel)) => format!("tunnel {}", tunnel.authority),
            Ok(Plan::Passthrough(direct)) => format!("plain {}", direct.address),
            Ok(Plan::Waypoint(to)) => format!("waypoint {}", to.tunnel.authority),
            Ok(Plan::Local(direct)) => format!("local {}", direct.address),
            Err(denial) => denial.reason().to_string(),
        })
        .collect();
    ways.sort();
    ways.dedup();
    ways
}

const BOTH: &[&str] = &["tunnel 10.1.0.1:8080", "tunnel 10.1.0.2:8080"];
const NATIVE: &[&str] = &["native"];

#[test]
fn each_kind_of_service_is_planned() {
    let headless = || Service { cluster_ips: vec![], ..cart() };
    let outside = || Service { external_ips: vec![ip("203.0.113.5")], ..cart() };
    let dual = || Service { cluster_ips: vec![ip("10.96.0.1"), ip("fd96::1")], ..cart() };
    let local = || Service { node_local: true, ..cart() };
    let rows: Vec<(&str, Service, &str, &[&str])> = vec![
        ("the cluster's address", cart(), "10.96.0.1:80", BOTH),
        ("a port that the service lacks", cart(), "10.96.0.1:81", &["service_port_unknown"]),
        ("a pod behind it, by its address", cart(), "10.1.0.1:9999", &["tunnel 10.1.0.1:9999"]),
        ("a pod outside the mesh", cart(), "10.1.0.3:80", NATIVE),
        (
            "headless: a pod's address, as DNS gives it",
            headless(),
            "10.1.0.2:8080",
            &["tunnel 10.1.0.2:8080"],
        ),
        (
            "headless: the port that is asked for, never the target port",
            headless(),
            "10.1.0.2:80",
            &["tunnel 10.1.0.2:80"],
        ),
        ("headless: there is no address to balance", headless(), "10.96.0.1:80", NATIVE),
        ("an external or load balancer's address, from within", outside(), "203.0.113.5:80", BOTH),
        ("a node's port, from within", cart(), "192.168.0.1:30080", NATIVE),
        (
            "dual stack: the family that is asked for",
            dual(),
            "[fd96::1]:80",
            &["tunnel [fd01::1]:8080", "tunnel [fd01::2]:8080"],
        ),
        ("dual stack: IPv4", dual(), "10.96.0.1:80", BOTH),
        ("dual stack: IPv4 written as IPv6", dual(), "[::ffff:10.96.0.1]:80", BOTH),
        ("internalTrafficPolicy Local", local(), "10.96.0.1:80", &["tunnel 10.1.0.1:8080"]),
        ("ExternalName", Service { external_name: true, ..cart() }, "10.96.0.1:80", NATIVE),
        ("without selector", Service { selector: [].into(), ..cart() }, "10.96.0.1:80", NATIVE),
    ];
    for (name, service, destination, expected) in rows {
        assert_eq!(goes(&lab(service), destination), expected, "{name}");
    }
}

#[test]
fn unready_and_terminating_pods_get_no_connections() {
    let with = |service: Service, change: &dyn Fn(Pod) -> Pod| {
        let mut lab = lab(service);
        lab.put([Object::Pod(change(pod("shop/cart-0", &APP, &["10.1.0.1"])))]);
        goes(&lab, "10.96.0.1:80")
    };
    let other = ["tunnel 10.1.0.2:8080"];
    assert_eq!(with(cart(), &|pod| Pod { ready: false, ..pod }), other, "not ready");
    assert_eq!(with(cart(), &|pod| Pod { terminating: true, ..pod }), other, "ending");
    let published = || Service { publish_not_ready: true, ..cart() };
    assert_eq!(with(published(), &|pod| Pod { ready: false, ..pod }), BOTH, "publishNotReadyAddresses");
    assert_eq!(with(published(), &|pod| Pod { terminating: true, ..pod }), BOTH, "and ending");

    let mut lab = lab(cart());
    lab.delete(Kind::Pod, "shop/cart-1");
    let ending =
        |ready| Object::Pod(Pod { ready, terminating: true, ..pod("shop/cart-0", &APP, &["10.1.0.1"]) });
    lab.put([ending(true)]);
    assert_eq!(goes(&lab, "10.96.0.1:80"), ["tunnel 10.1.0.1:8080"], "the last one, ending, still serves");
    lab.put([ending(false)]);
    assert_eq!(goes(&lab, "10.96.0.1:80"), ["no_endpoint"], "it serves no more");
}

#[test]
fn affinity_and_a_client_that_is_its_own_endpoint() {
    let sticky = lab(Service { affinity: Affinity::ClientIp, ..cart() });
    assert_eq!(goes(&sticky, "10.96.0.1:80").len(), 1, "one endpoint, whatever the dice");

    let mut own = lab(cart());
    own.delete(Kind::Pod, "shop/cart-0");
    own.delete(Kind::Pod, "shop/cart-1");
    own.put([Object::Pod(pod("shop/web", &APP, &["10.1.0.7"]))]);
    assert_eq!(
        goes(&own, "10.96.0.1:80"),
        ["local 10.1.0.7:8080"],
        "the client stands behind the service itself"
    );
}

#[test]
fn services_with_enrolled_and_other_endpoints() {
    let mut lab = lab(cart());
    let opted_out =
        pod("shop/cart-1", &[("app", "cart"), ("istio.io/dataplane-mode", "none")], &["10.1.0.2"]);
    lab.put([Object::Pod(opted_out)]);
    assert_eq!(goes(&lab, "10.96.0.1:80"), ["plain 10.1.0.2:8080", "tunnel 10.1.0.1:8080"]);
    let host = Pod { host_network: true, ..pod("shop/cart-1", &APP, &["192.168.0.2"]) };
    lab.put([Object::Pod(host)]);
    assert_eq!(
        goes(&lab, "10.96.0.1:80"),
        ["plain 192.168.0.2:8080", "tunnel 10.1.0.1:8080"],
        "host network"
    );
    let mut metadata = metadata("shop/cart-0", &APP);
    metadata.labels.insert("istio.io/dataplane-mode".into(), "none".into());
    lab.put([Object::Pod(Pod { metadata, ..pod("shop/cart-0", &APP, &["10.1.0.1"]) })]);
    assert_eq!(goes(&lab, "10.96.0.1:80"), NATIVE, "no enrolled endpoint: not captured");
}

/// The field or annotation of the Service, else the Namespace's annotation; not what other namespaces say.
#[test]
fn traffic_distribution_of_the_namespace() {
    use TrafficDistribution::{Any, PreferSameNode, PreferSameZone, Unset};
    let of = |namespace: &str, traffic_distribution| {
        let metadata = metadata(&format!("/{namespace}"), &[("istio.io/dataplane-mode", "ambient")]);
        Object::Namespace(Namespace { metadata, traffic_distribution })
    };
    let rows = [
        ("nothing is said", Unset, Unset, LoadBalancingMode::Unspecified, 0),
        ("the namespace says it", Unset, PreferSameZone, LoadBalancingMode::Failover, 3),
        ("the service says otherwise", PreferSameNode, PreferSameZone, LoadBalancingMode::Failover, 5),
        ("the service wants none", Any, PreferSameZone, LoadBalancingMode::Unspecified, 0),
    ];
    for (name, own, namespaces, mode, scopes) in rows {
        let mut lab = lab(Service { traffic_distribution: own, ..cart() });
        lab.put([of("lone", PreferSameNode), of("shop", namespaces)]);
        let key = service_key("shop/cart");
        let balancing = lab.mesh.service(&key).expect("a service").load_balancing.clone();
        assert_eq!((balancing.mode, balancing.routing_preference.len()), (mode, scopes), "{name}");
        lab.delete(Kind::Namespace, "shop");
        let balancing = &lab.mesh.service(&key).expect("a service").load_balancing;
        assert_eq!(
            balancing.mode == LoadBalancingMode::Failover,
            own == PreferSameNode,
            "{name}: afterwards"
        );
    }
}
