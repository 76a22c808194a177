//! Who owns an address: rows for each rule, and properties against a reference.

use std::collections::{BTreeMap, BTreeSet};

use ambit_core::balance::Avoid;
use ambit_core::derive::{
    EntryPort, Kind, Metadata, Object, ObjectKey, Pod, Resolution, Service, ServiceEntry, Transport,
    WorkloadEntry,
};
use ambit_core::model::Exported;
use ambit_core::outbound::{Connection, Plan, plan};
use ambit_core::ownership::{Captured, Part, captured};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::build::{ip, socket, uid};
use crate::objects::{Lab, metadata, namespace, pod, service, service_port};

const VIRTUAL: &str = "240.0.0.1";

fn exported(to: &[&str]) -> Exported {
    match to {
        ["*"] => Exported::Everywhere,
        to => Exported::To(to.iter().map(|namespace| (*namespace).into()).collect()),
    }
}

/// An entry that claims an address on port 80 and sends its connections to an endpoint outside the mesh.
fn entry(name: &str, created: i64, address: &str, to: &[&str], endpoint: &str) -> Object {
    let metadata = Metadata { created: Some(created), ..metadata(name, &[]) };
    let endpoint =
        WorkloadEntry { metadata: metadata.clone(), address: Some(ip(endpoint)), ..WorkloadEntry::default() };
    Object::ServiceEntry(ServiceEntry {
        hosts: vec![format!("{}.example", metadata.name)],
        addresses: vec![address.parse().expect("an address")],
        ports: vec![EntryPort {
            name: "tcp".into(),
            port: 80,
            target: None,
            transport: Transport::Tcp,
            protocol: "tcp".into(),
        }],
        resolution: Resolution::Static,
        endpoints: vec![endpoint],
        exported: exported(to),
        metadata,
        ..ServiceEntry::default()
    })
}

/// A machine of the mesh.
fn machine(name: &str, created: i64, address: &str) -> Object {
    let labels = [("networking.istio.io/tunnel", "http")];
    Object::WorkloadEntry(WorkloadEntry {
        metadata: Metadata { created: Some(created), ..metadata(name, &labels) },
        address: Some(ip(address)),
        ..WorkloadEntry::default()
    })
}

/// The Service `shop/cart` with an enrolled endpoint, one outside the mesh, and a client in each namespace.
fn base() -> Vec<Object> {
    let cart = service("shop/cart", &["10.96.0.1"], &[("app", "cart")], vec![service_port(80, "8080")]);
    let old = service("old/db", &["10.96.0.2"], &[("app", "db")], vec![service_port(80, "8080")]);
    let agent = Pod { host_network: true, ..pod("kube-system/agent", &[], &["192.168.0.1"]) };
    let client = |name: &str, address| Object::Pod(pod(name, &[], &[address]));
    vec![
        namespace("shop", "ambient"),
        namespace("aaa", "ambient"),
        namespace("blog", "ambient"),
        Object::Service(Service { external_ips: vec![ip("192.168.0.1"), ip("203.0.113.5")], ..cart }),
        Object::Service(old),
        Object::Pod(pod("shop/cart", &[("app", "cart")], &["10.1.0.1"])),
        Object::Pod(pod("old/db", &[("app", "db")], &["10.1.0.2"])),
        Object::Pod(agent),
        client("shop/web", "10.1.0.7"),
        client("aaa/web", "10.1.0.8"),
        client("blog/web", "10.1.0.9"),
    ]
}

fn lab(more: impl IntoIterator<Item = Object>) -> Lab {
    Lab::new(base().into_iter().chain(more))
}

/// Whether the kernel takes connections of the namespace's clients to the destination to the daemon.
fn is_captured(lab: &Lab, namespace: &str, destination: &str) -> bool {
    let destination = socket(destination);
    match captured(&lab.mesh, destination.ip()) {
        Captured::Whole => true,
        Captured::Parts(parts) => parts.iter().any(|Part { namespace: of, port }| {
            of.as_deref().is_none_or(|of| of == namespace)
                && port.is_none_or(|port| port == destination.port())
        }),
    }
}

/// Where connections of the namespace's client end up, whoever carries them.
fn goes(lab: &Lab, namespace: &str, destination: &str) -> String {
    if !is_captured(lab, namespace, destination) {
        return format!("plain {destination}");
    }
    let source = uid(&format!("{namespace}/web"));
    let connection = Connection { source, destination: socket(destination), chosen: None };
    match plan(&lab.mesh, &connection, &Avoid::NONE, 0) {
        Ok(Plan::Tunnel(tunnel)) => format!("tunnel {} {}", tunnel.destination.uid, tunnel.authority),
        Ok(Plan::Waypoint(to)) => format!("waypoint {}", to.tunnel.authority),
        Ok(Plan::Local(local)) => format!("local {}", local.address),
        Ok(Plan::Passthrough(plain)) => format!("plain {}", plain.address),
        Err(denial) => denial.reason().to_string(),
    }
}

#[test]
fn each_rule_of_ownership() {
    let cart = "tunnel Kubernetes//Pod/shop/cart 10.1.0.1:8080";
    let outside = "plain 192.0.2.9:80";
    let claim = |address| entry("aaa/claim", 1, address, &["*"], "192.0.2.9");
    let vm = "tunnel Kubernetes/networking.istio.io/WorkloadEntry/vms/vm 10.9.0.9:80";
    let rows: Vec<(&str, Vec<Object>, &str, [&str; 3])> = vec![
        ("a Service's address", vec![claim("10.96.0.1")], "10.96.0.1:80", [cart; 3]),
        (
            "that of a Service outside the mesh",
            vec![claim("10.96.0.2")],
            "10.96.0.2:80",
            ["plain 10.96.0.2:80"; 3],
        ),
        (
            "an enrolled pod's",
            vec![claim("10.1.0.1")],
            "10.1.0.1:80",
            ["tunnel Kubernetes//Pod/shop/cart 10.1.0.1:80"; 3],
        ),
        ("that of a pod outside the mesh", vec![claim("10.1.0.2")], "10.1.0.2:80", ["plain 10.1.0.2:80"; 3]),
        (
            "the same, by a machine",
            vec![machine("aaa/vm", 1, "10.1.0.2")],
            "10.1.0.2:80",
            ["plain 10.1.0.2:80"; 3],
        ),
        ("a node's, the Service's port", vec![claim("192.168.0.1")], "192.168.0.1:80", [cart; 3]),
        ("a node's, another port", vec![], "192.168.0.1:10250", ["plain 192.168.0.1:10250"; 3]),
        (
            "the same, by a machine",
            vec![machine("aaa/vm", 1, "192.168.0.1")],
            "192.168.0.1:10250",
            ["plain 192.168.0.1:10250"; 3],
        ),
        ("an external address", vec![claim("203.0.113.5")], "203.0.113.5:80", [cart; 3]),
        ("another port of it", vec![], "203.0.113.5:443", ["plain 203.0.113.5:443"; 3]),
        ("nobody's", vec![claim(VIRTUAL)], "240.0.0.1:80", [outside; 3]),
        ("another port of it", vec![claim(VIRTUAL)], "240.0.0.1:81", ["plain 240.0.0.1:81"; 3]),
        (
            "to its own namespace only",
            vec![entry("aaa/claim", 1, VIRTUAL, &["aaa"], "192.0.2.9")],
            "240.0.0.1:80",
            [outside, "plain 240.0.0.1:80", "plain 240.0.0.1:80"],
        ),
        (
            "to another namespace only",
            vec![entry("aaa/claim", 1, VIRTUAL, &["blog"], "192.0.2.9")],
            "240.0.0.1:80",
            ["plain 240.0.0.1:80", outside, "plain 240.0.0.1:80"],
        ),
        (
            "to nobody",
            vec![entry("aaa/claim", 1, VIRTUAL, &[], "192.0.2.9")],
            "240.0.0.1:80",
            ["plain 240.0.0.1:80"; 3],
        ),
        (
            "the client's own namespace's first, then the oldest",
            vec![claim(VIRTUAL), entry("blog/claim", 2, VIRTUAL, &["*"], "192.0.2.8")],
            "240.0.0.1:80",
            [outside, "plain 192.0.2.8:80", outside],
        ),
        (
            "the oldest of those that are exported",
            vec![entry("old/claim", 0, VIRTUAL, &["old"], "192.0.2.7"), claim(VIRTUAL)],
            "240.0.0.1:80",
            [outside; 3],
        ),
        ("a machine of the mesh", vec![machine("vms/vm", 2, "10.9.0.9")], "10.9.0.9:80", [vm; 3]),
        (
            "a younger claim to its address",
            vec![machine("vms/vm", 2, "10.9.0.9"), entry("blog/claim", 3, "10.9.0.9", &["*"], "192.0.2.8")],
            "10.9.0.9:80",
            [vm, "plain 192.0.2.8:80", vm],
        ),
    ];
    for (name, more, destination, expected) in rows {
        let lab = lab(more);
        let found = ["aaa", "blog", "shop"].map(|client| goes(&lab, client, destination));
        assert_eq!(found, expected, "{name}: for clients of aaa, blog and shop");
    }
}

#[test]
fn the_loser_is_told_who_has_the_address() {
    let rows: Vec<(&str, Vec<Object>, Kind, bool, &str)> = vec![
        (
            "a Service's address",
            vec![entry("aaa/claim", 1, "10.96.0.1", &["*"], "192.0.2.9")],
            Kind::ServiceEntry,
            false,
            "10.96.0.1 is not in force here: it belongs to Service shop/cart",
        ),
        (
            "a pod's",
            vec![entry("aaa/claim", 1, "10.1.0.2", &["aaa"], "192.0.2.9")],
            Kind::ServiceEntry,
            false,
            "10.1.0.2 is not in force here: it belongs to Pod old/db",
        ),
        (
            "a node's",
            vec![entry("aaa/claim", 1, "192.168.0.1", &["blog"], "192.0.2.9")],
            Kind::ServiceEntry,
            false,
            "192.168.0.1 is not in force here: it belongs to Service shop/cart",
        ),
        (
            "an older entry's",
            vec![
                entry("blog/older", 1, VIRTUAL, &["*"], "192.0.2.8"),
                entry("aaa/claim", 2, VIRTUAL, &["*"], "192.0.2.9"),
            ],
            Kind::ServiceEntry,
            true,
            "240.0.0.1 is not in force here for clients of other namespaces: it belongs to ServiceEntry \
             blog/older",
        ),
        (
            "an older entry's, which those clients do not see",
            vec![
                entry("blog/older", 1, VIRTUAL, &["blog"], "192.0.2.8"),
                entry("aaa/claim", 2, VIRTUAL, &["*"], "192.0.2.9"),
            ],
            Kind::ServiceEntry,
            true,
            "",
        ),
        (
            "a pod's, claimed by a machine",
            vec![machine("aaa/claim", 1, "10.1.0.1")],
            Kind::WorkloadEntry,
            true,
            "10.1.0.1 is not in force here: it belongs to Pod shop/cart",
        ),
        (
            "a node's, claimed by a machine",
            vec![machine("aaa/claim", 1, "192.168.0.1")],
            Kind::WorkloadEntry,
            true,
            "192.168.0.1 is not in force here: it belongs to Node node-a",
        ),
    ];
    for (name, more, kind, accepted, message) in rows {
        let lab = lab(more);
        let said: Vec<_> = lab
            .conditions(kind, "aaa/claim")
            .into_iter()
            .map(|condition| (condition.accepted, condition.message.as_str()))
            .collect();
        assert_eq!(said, [(accepted, message)], "{name}");
    }
}

#[test]
fn conditions_follow_the_other_object() {
    let mut lab = Lab::new([namespace("shop", "ambient")]);
    let said = |lab: &Lab| {
        let said = lab.conditions(Kind::ServiceEntry, "aaa/claim");
        said.iter().map(|condition| condition.message.clone()).collect::<Vec<_>>()
    };
    lab.put([entry("aaa/claim", 1, "10.96.0.1", &["*"], "192.0.2.9")]);
    assert_eq!(said(&lab), [""], "nobody else's");
    let cart = || service("shop/cart", &["10.96.0.1"], &[], vec![service_port(80, "8080")]);
    let (derived, _) = lab.put([Object::Service(cart())]);
    assert_eq!(said(&lab), ["10.96.0.1 is not in force here: it belongs to Service shop/cart"]);
    assert_eq!(derived.conditions.len(), 1, "the news are told");
    lab.delete(Kind::Service, "shop/cart");
    assert_eq!(said(&lab), [""]);
}

#[test]
fn a_service_of_another_namespace_keeps_its_host_name() {
    let host = "cart.shop.svc.cluster.local";
    let Object::ServiceEntry(claim) = entry("aaa/claim", 1, VIRTUAL, &["*"], "192.0.2.9") else {
        unreachable!("an entry");
    };
    let claim = Object::ServiceEntry(ServiceEntry { hosts: vec![host.into()], ..claim });
    let mut lab = Lab::new([claim]);
    let services = |lab: &Lab| lab.mesh.services().map(|s| s.key.to_string()).collect::<BTreeSet<_>>();
    let said = |lab: &Lab| {
        let said = lab.conditions(Kind::ServiceEntry, "aaa/claim");
        said.iter().map(|condition| (condition.accepted, condition.message.clone())).collect::<Vec<_>>()
    };
    assert_eq!(services(&lab), [format!("aaa/{host}")].into(), "nobody has the name yet");
    lab.put([Object::Service(service("shop/cart", &["10.96.0.1"], &[], vec![service_port(80, "80")]))]);
    assert_eq!(services(&lab), [format!("shop/{host}")].into());
    let lost = format!("{host} is not in force here: it belongs to Service shop/cart");
    assert_eq!(said(&lab), [(false, lost)]);
    lab.delete(Kind::Service, "shop/cart");
    assert_eq!(services(&lab), [format!("aaa/{host}")].into());
    assert_eq!(said(&lab), [(true, String::new())]);
}

const NAMESPACES: [&str; 3] = ["aaa", "blog", "shop"];
const ADDRESSES: [&str; 7] =
    ["10.96.0.1", "10.96.0.2", "10.1.0.1", "10.1.0.2", "192.168.0.1", "203.0.113.5", VIRTUAL];

fn an_entry() -> impl Strategy<Value = Object> {
    let to = prop_oneof![
        Just(vec!["*"]),
        subsequence(NAMESPACES.to_vec(), 0..=3),
        subsequence(NAMESPACES.to_vec(), 1..=1),
    ];
    let machine_or_entry = prop::bool::weighted(0.25);
    (select(NAMESPACES.to_vec()), 0..3_usize, 0..3_i64, select(ADDRESSES.to_vec()), to, machine_or_entry)
        .prop_map(|(namespace, number, created, address, to, is_machine)| {
            let name = format!("{namespace}/e{number}");
            if is_machine {
                machine(&name, created, address)
            } else {
                let endpoint = format!(
                    "192.0.2.{}",
                    10 * (NAMESPACES.iter().position(|n| *n == namespace).unwrap_or(9)) + number
                );
                entry(&name, created, address, &to, &endpoint)
            }
        })
}

/// Whether the object may concern clients of the namespace: it is the namespace's own, or exported to it.
fn concerns(object: &Object, client: &str) -> bool {
    match object {
        Object::ServiceEntry(entry) => entry.exported.reaches(client),
        other => other.key().namespace == client || matches!(other, Object::WorkloadEntry(_)),
    }
}

fn destinations() -> impl Iterator<Item = String> {
    ADDRESSES.into_iter().flat_map(|address| [80, 81].map(|port| format!("{address}:{port}")))
}

/// Whether Kubernetes has given the destination to somebody.
fn is_given(destination: &str) -> bool {
    !destination.starts_with(VIRTUAL) && destination != "203.0.113.5:81"
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// No entry of another namespace that is not exported to a client's changes where that client ends up;
    /// and no entry at all does at an address that Kubernetes has given out, nor one of another namespace at
    /// an address that the client's own namespace claims.
    #[test]
    fn entries_concern_only_those_they_are_exported_to(
        entries in proptest::collection::vec(an_entry(), 0..8),
    ) {
        let entries: BTreeMap<ObjectKey, Object> =
            entries.into_iter().map(|object| (object.key(), object)).collect();
        let entries: Vec<Object> = entries.into_values().collect();
        let all = lab(entries.clone());
        let none = lab([]);
        for client in NAMESPACES {
            let seen = lab(entries.iter().filter(|object| concerns(object, client)).cloned());
            let own = lab(entries.iter().filter(|object| object.key().namespace == client).cloned());
            for destination in destinations() {
                let found = goes(&all, client, &destination);
                let what = format!("{client} to {destination}");
                prop_assert_eq!(&found, &goes(&seen, client, &destination), "{}", what);
                if is_given(&destination) {
                    prop_assert_eq!(&found, &goes(&none, client, &destination), "{}", what);
                }
                if is_captured(&own, client, &destination) {
                    prop_assert_eq!(&found, &goes(&own, client, &destination), "{}", what);
                }
            }
        }
    }
}
