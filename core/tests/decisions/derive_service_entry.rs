//! Service entries → services and endpoints, and where connections to them go.

use ambit_core::balance::Avoid;
use ambit_core::derive::{
    EntryPort, Kind, Metadata, Object, Pod, Resolution, ServiceEntry, ServicePort, Transport, WorkloadEntry,
};
use ambit_core::model::ServiceKey;
use ambit_core::outbound::{Connection, Plan, plan, resolved};

use crate::build::{captures, ip, socket, uid};
use crate::objects::{Lab, container_port, metadata, namespace, pod, said, service, service_port, shop};

const VIRTUAL: &str = "240.0.0.1";

/// An entry of `shop` for `db.example` on port 80, whose endpoints listen on 8080.
fn entry(name: &str, created: i64, resolution: Resolution, endpoints: &[&str]) -> ServiceEntry {
    let metadata = Metadata { created: Some(created), ..metadata(name, &[]) };
    let endpoint = |text: &&str| WorkloadEntry {
        metadata: metadata.clone(),
        address: text.parse().ok(),
        hostname: if text.parse::<std::net::IpAddr>().is_ok() { String::new() } else { (*text).to_owned() },
        ..WorkloadEntry::default()
    };
    ServiceEntry {
        hosts: vec!["db.example".into()],
        addresses: vec![VIRTUAL.parse().expect("an address")],
        ports: vec![EntryPort {
            name: "tcp".into(),
            port: 80,
            target: Some(8080),
            transport: Transport::Tcp,
            protocol: "tcp".into(),
        }],
        resolution,
        endpoints: endpoints.iter().map(endpoint).collect(),
        metadata: metadata.clone(),
        ..ServiceEntry::default()
    }
}

fn lab(entries: impl IntoIterator<Item = ServiceEntry>) -> Lab {
    Lab::new(shop().into_iter().chain(entries.into_iter().map(Object::ServiceEntry)))
}

/// Where a connection of `shop/api` to the entry's address goes: how, and to which address.
fn goes(lab: &Lab) -> String {
    let flow =
        Connection { source: uid("shop/api"), destination: socket(&format!("{VIRTUAL}:80")), chosen: None };
    describe(plan(&lab.mesh, &flow, &Avoid::NONE, 0))
}

fn describe(plan: Result<Plan, ambit_core::Denial>) -> String {
    match plan {
        Ok(Plan::Tunnel(tunnel)) => format!("tunnel {}", tunnel.authority),
        Ok(Plan::Waypoint(to)) => format!("waypoint {}", to.tunnel.authority),
        Ok(Plan::Local(direct)) => format!("local {}", direct.address),
        Ok(Plan::Passthrough(direct)) => match direct.hostname {
            Some(name) => format!("name {name}:{}", direct.address.port()),
            None => format!("plain {}", direct.address),
        },
        Err(denial) => denial.reason().to_string(),
    }
}

#[test]
fn service_entries_are_planned() {
    use Resolution::{Dns, None, Static};
    let selecting = |label: &str| ServiceEntry {
        selector: [("app".to_owned(), label.to_owned())].into(),
        ..entry("shop/db", 1, Static, &[])
    };
    let rows = [
        ("an endpoint outside", entry("shop/db", 1, Static, &["192.0.2.9"]), true, "plain 192.0.2.9:8080"),
        (
            "an enrolled workload's address",
            entry("shop/db", 1, Static, &["10.1.0.1"]),
            true,
            "tunnel 10.1.0.1:8080",
        ),
        ("the client itself", entry("shop/db", 1, Static, &["10.1.0.2"]), true, "local 10.1.0.2:8080"),
        (
            "an endpoint by name",
            entry("shop/db", 1, Dns, &["db.far.example"]),
            true,
            "name db.far.example:8080",
        ),
        ("the host itself", entry("shop/db", 1, Dns, &[]), true, "name db.example:8080"),
        ("no endpoint", entry("shop/db", 1, Static, &[]), true, "no_endpoint"),
        ("an impossible endpoint", entry("shop/db", 1, Static, &["127.0.0.1"]), true, "no_endpoint"),
        ("the client's own choice", entry("shop/db", 1, None, &[]), false, "plain 240.0.0.1:80"),
        ("a selected pod", selecting("cart"), true, "tunnel 10.1.0.1:8080"),
        ("a selector without matches", selecting("x"), true, "no_endpoint"),
    ];
    for (name, entry, captured, expected) in rows {
        let mut lab = lab([entry]);
        assert_eq!(captures(&lab.mesh, ip(VIRTUAL)), captured, "{name}: captured");
        assert_eq!(goes(&lab), expected, "{name}");
        let before = lab.mesh.workloads().count();
        lab.delete(Kind::ServiceEntry, "shop/db");
        assert!(lab.mesh.workloads().count() <= before && lab.mesh.services().count() == 0, "{name}: gone");
        assert_eq!(lab.mesh.workloads().count(), 3, "{name}: only the pods are left");
        assert!(!captures(&lab.mesh, ip(VIRTUAL)), "{name}: and afterwards");
    }
}

#[test]
fn a_resolved_address_is_planned_again() {
    let lab = lab([entry("shop/db", 1, Resolution::Dns, &["db.far.example"])]);
    let flow =
        Connection { source: uid("shop/api"), destination: socket(&format!("{VIRTUAL}:80")), chosen: None };
    let Ok(Plan::Passthrough(named)) = plan(&lab.mesh, &flow, &Avoid::NONE, 0) else { panic!("a name") };
    let rows = [
        ("192.0.2.9", Some("plain 192.0.2.9:8080")),
        ("10.1.0.1", Some("tunnel 10.1.0.1:8080")),
        ("::ffff:10.1.0.1", Some("tunnel 10.1.0.1:8080")),
        ("127.0.0.1", None),
        ("::1", None),
        ("0.0.0.0", None),
        ("224.0.0.1", None),
    ];
    for (address, expected) in rows {
        let found = resolved(&lab.mesh, &named, ip(address), 0).map(|plan| describe(Ok(plan)));
        assert_eq!(found.as_deref(), expected, "{address}");
    }
}

#[test]
fn a_host_belongs_to_one_object() {
    let key = |host: &str| ServiceKey { namespace: "shop".into(), hostname: host.into() };
    let mut lab = lab([
        entry("shop/young", 2, Resolution::Static, &["192.0.2.2"]),
        entry("shop/old", 1, Resolution::Static, &["192.0.2.1"]),
    ]);
    let owner = |lab: &Lab| lab.mesh.service(&key("db.example")).map(|service| service.name.to_string());
    assert_eq!((owner(&lab).as_deref(), goes(&lab).as_str()), (Some("old"), "plain 192.0.2.1:8080"));
    assert_eq!(said(&lab, Kind::ServiceEntry, "shop/old"), [(true, None)]);
    let lost = [(false, Some("spec.hosts[0]".to_owned()))];
    assert_eq!(said(&lab, Kind::ServiceEntry, "shop/young"), lost);

    lab.delete(Kind::ServiceEntry, "shop/old");
    assert_eq!((owner(&lab).as_deref(), goes(&lab).as_str()), (Some("young"), "plain 192.0.2.2:8080"));
    assert_eq!(said(&lab, Kind::ServiceEntry, "shop/young"), [(true, None)]);

    let host = "cart.shop.svc.cluster.local";
    let claiming = ServiceEntry {
        hosts: vec![host.into(), "cart.example".into()],
        ..entry("shop/claiming", 1, Resolution::Static, &[])
    };
    lab.put([Object::ServiceEntry(claiming)]);
    assert_eq!(said(&lab, Kind::ServiceEntry, "shop/claiming"), [(true, None)]);
    let cart = service("shop/cart", &["10.96.0.1"], &[("app", "cart")], vec![service_port(80, "8080")]);
    lab.put([Object::Service(cart)]);
    let part = [(true, Some("spec.hosts[0]".to_owned()))];
    assert_eq!(said(&lab, Kind::ServiceEntry, "shop/claiming"), part, "the other host is still its own");
    assert_eq!(lab.mesh.service(&key(host)).expect("there").addresses, [ip("10.96.0.1")]);
}

#[test]
fn conditions_of_service_entries() {
    let plain = || entry("shop/db", 1, Resolution::Static, &["192.0.2.9"]);
    let rows = [
        (
            "a range",
            ServiceEntry { addresses: vec!["10.9.0.0/16".parse().expect("a block")], ..plain() },
            "spec.addresses[0]",
        ),
        ("no address", ServiceEntry { addresses: vec![], ..plain() }, "spec.addresses"),
        (
            "an impossible endpoint",
            entry("shop/db", 1, Resolution::Static, &["127.0.0.1"]),
            "spec.endpoints[0].address",
        ),
    ];
    for (name, entry, field) in rows {
        assert_eq!(
            said(&lab([entry]), Kind::ServiceEntry, "shop/db"),
            [(true, Some(field.to_owned()))],
            "{name}"
        );
    }
}

/// Istio's order: an endpoint's own map by the name of the port, then `targetPort`, then the port's number;
/// for a pod its port of that name takes the place of the map where `targetPort` is not set.
#[test]
fn target_ports_of_selected_endpoints() {
    let selecting = |target| ServiceEntry {
        selector: [("app".to_owned(), "web".to_owned())].into(),
        ports: vec![EntryPort {
            name: "http".into(),
            port: 80,
            target,
            transport: Transport::Tcp,
            protocol: "http".into(),
        }],
        ..entry("shop/db", 1, Resolution::Static, &[])
    };
    let named = || {
        let base = pod("shop/web", &[("app", "web")], &["10.1.0.1"]);
        Object::Pod(Pod { ports: vec![container_port("http", 3000)], ..base })
    };
    let bare = || Object::Pod(pod("shop/web", &[("app", "web")], &["10.1.0.1"]));
    let machine = |ports: &[(&str, u16)]| {
        Object::WorkloadEntry(WorkloadEntry {
            metadata: metadata("shop/web", &[("app", "web"), ("networking.istio.io/tunnel", "http")]),
            address: Some(ip("10.1.0.1")),
            ports: ports.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect(),
            ..WorkloadEntry::default()
        })
    };
    let rows = [
        ("a pod's port of that name", named(), None, 3000),
        ("a targetPort before it", named(), Some(8080), 8080),
        ("a pod without that port", bare(), None, 80),
        ("a machine's port of that name", machine(&[("http", 3000)]), None, 3000),
        ("the same before a targetPort", machine(&[("http", 3000)]), Some(8080), 3000),
        ("a machine's other port", machine(&[("tcp", 3000)]), Some(8080), 8080),
        ("a machine without ports", machine(&[]), None, 80),
    ];
    for (name, endpoint, target, expected) in rows {
        let client = Object::Pod(pod("shop/api", &[], &["10.1.0.2"]));
        let lab = Lab::new([
            namespace("shop", "ambient"),
            client,
            endpoint,
            Object::ServiceEntry(selecting(target)),
        ]);
        assert_eq!(goes(&lab), format!("tunnel 10.1.0.1:{expected}"), "{name}");
    }
}

#[test]
fn a_machines_ports_come_before_a_services_numeric_target_port() {
    let ports = |ports: &[(&str, u16)]| {
        let machine = WorkloadEntry {
            metadata: metadata("shop/vm", &[("app", "vm")]),
            address: Some(ip("192.0.2.9")),
            ports: ports.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect(),
            ..WorkloadEntry::default()
        };
        let port = ServicePort { name: "http".into(), ..service_port(80, "8080") };
        let lab = Lab::new([
            Object::WorkloadEntry(machine),
            Object::Service(service("shop/vm", &["10.96.0.1"], &[("app", "vm")], vec![port])),
        ]);
        let workload = lab.mesh.workloads().next().expect("a workload").clone();
        workload.services.values().flatten().map(|mapping| mapping.target_port).collect::<Vec<_>>()
    };
    assert_eq!(ports(&[]), [8080]);
    assert_eq!(ports(&[("http", 3000)]), [3000]);
    assert_eq!(ports(&[("other", 3000)]), [8080]);
}

/// What resolves to a mesh service's address is planned as that service, never as plaintext.
#[test]
fn a_name_that_resolves_to_a_service_is_planned_as_that_service() {
    let named_entry = || {
        let base = entry("shop/db", 1, Resolution::Dns, &["db.far.example"]);
        ServiceEntry { ports: vec![EntryPort { target: Some(80), ..base.ports[0].clone() }], ..base }
    };
    let mut lab = lab([named_entry()]);
    let ports = vec![service_port(80, "8080")];
    let headed = service("shop/cart", &["10.96.0.1"], &[("app", "cart")], ports.clone());
    let other = service("shop/other", &["10.96.0.2"], &[("app", "cart")], vec![service_port(81, "8080")]);
    let empty = service("shop/empty", &["10.96.0.3"], &[("app", "nobody")], ports);
    lab.put([headed, other, empty].map(Object::Service));
    let flow =
        Connection { source: uid("shop/api"), destination: socket(&format!("{VIRTUAL}:80")), chosen: None };
    let Ok(Plan::Passthrough(named)) = plan(&lab.mesh, &flow, &Avoid::NONE, 0) else { panic!("a name") };
    let rows = [
        ("a service's address", "10.96.0.1", Some("tunnel 10.1.0.1:8080")),
        ("that of a service without the port", "10.96.0.2", None),
        ("that of a service without endpoints", "10.96.0.3", None),
        ("the entry's own address, which is a name again", VIRTUAL, None),
        ("an address outside", "192.0.2.9", Some("plain 192.0.2.9:80")),
    ];
    for (name, address, expected) in rows {
        let found = resolved(&lab.mesh, &named, ip(address), 0).map(|plan| describe(Ok(plan)));
        assert_eq!(found.as_deref(), expected, "{name}");
    }
}
