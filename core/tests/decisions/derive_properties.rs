//! Derivation in steps must come to what derivation from scratch comes to, whatever happened on the way.

use std::collections::{BTreeMap, BTreeSet};

use ambit_core::derive::{
    Condition, EndpointSlice, EntryPort, Metadata, MtlsMode, Node, Object, ObjectEvent, ObjectKey, Phase,
    Pod, PolicyAction, PolicyRule, PortRef, Resolution, Service, ServiceEntry, Settings, SliceEndpoint,
    SlicePort, Source, Transport, When, WorkloadEntry, World,
};
use ambit_core::mesh::Mesh;
use ambit_core::model::{Health, Workload};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;

use crate::build::ip;
use crate::objects::{
    authorization, container_port, metadata, namespace, peer, pod, put, service, service_port,
};

type Labels = Vec<(&'static str, &'static str)>;

fn name() -> impl Strategy<Value = String> {
    let name = |namespaces: &[&'static str]| {
        (select(namespaces.to_vec()), select(vec!["a", "b"]))
            .prop_map(|(namespace, name)| format!("{namespace}/{name}"))
    };
    name(&["shop", "shop", "shop", "blog", "ambit-system"])
}

fn labels() -> impl Strategy<Value = Labels> {
    let app = option::of(select(vec!["x", "y"]));
    let version = option::of(select(vec!["1", "2"]));
    let mode = option::weighted(0.3, select(vec!["ambient", "none", "?"]));
    (app, version, mode).prop_map(|(app, version, mode)| {
        let app = app.map(|app| ("app", app));
        let version = version.map(|version| ("version", version));
        app.into_iter().chain(version).chain(mode.map(|mode| ("istio.io/dataplane-mode", mode))).collect()
    })
}

fn selector() -> impl Strategy<Value = Labels> {
    select(vec![vec![], vec![("app", "x")], vec![("app", "y")], vec![("app", "x"), ("version", "1")]])
}

fn addresses() -> impl Strategy<Value = Vec<&'static str>> {
    vec(select(vec!["10.1.0.1", "10.1.0.2", "fd00::1", "10.96.0.1"]), 0..3)
}

fn a_pod() -> impl Strategy<Value = Object> {
    let phase = select(vec![Phase::Running, Phase::Running, Phase::Pending, Phase::Succeeded, Phase::Failed]);
    let ports =
        vec(select(vec![container_port("web", 1), container_port("web", 2), container_port("api", 3)]), 0..2);
    let flags = (any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.9));
    (name(), labels(), addresses(), phase, ports, flags).prop_map(
        |(name, labels, addresses, phase, ports, (ready, host_network, scheduled))| {
            let base = pod(&name, &labels, &addresses);
            let node = if scheduled { base.node.clone() } else { String::new() };
            let probes = vec![PortRef::Name("web".into())];
            let terminating = ready && host_network;
            Object::Pod(Pod { phase, ports, ready, terminating, host_network, node, probes, ..base })
        },
    )
}

fn a_service() -> impl Strategy<Value = Object> {
    let ports =
        vec(select(vec![service_port(80, "8080"), service_port(81, "web"), service_port(82, "api")]), 0..3);
    (name(), addresses(), selector(), ports, prop::bool::weighted(0.1)).prop_map(
        |(name, addresses, selector, ports, external_name)| {
            let base = service(&name, &addresses, &selector, ports);
            Object::Service(Service { external_name, ..base })
        },
    )
}

fn a_slice() -> impl Strategy<Value = Object> {
    let healths = select(vec![Health::Healthy, Health::Healthy, Health::Draining, Health::Unhealthy]);
    let addresses = select(vec!["10.1.0.1", "10.1.0.1", "10.1.0.2", "10.7.0.1"]);
    let pods = option::weighted(0.3, select(vec!["a", "b"]).prop_map(str::to_owned));
    let endpoint =
        (addresses, healths, pods, select(vec!["", "node-a"])).prop_map(|(address, health, pod, node)| {
            SliceEndpoint { address: ip(address), health, node: node.to_owned(), zone: String::new(), pod }
        });
    let port = SlicePort { name: String::new(), port: 7070, transport: Transport::Tcp };
    let other = SlicePort { name: "no".into(), ..port.clone() };
    let ports = select(vec![vec![port.clone()], vec![port, other.clone()], vec![other]]);
    (name(), select(vec!["a", "b"]), prop::bool::weighted(0.2), vec(endpoint, 0..4), ports).prop_map(
        |(name, service, of_selector, endpoints, ports)| {
            let (metadata, service) = (metadata(&name, &[]), service.to_owned());
            Object::EndpointSlice(EndpointSlice { metadata, service, of_selector, endpoints, ports })
        },
    )
}

fn a_node() -> impl Strategy<Value = Object> {
    select(vec!["", "eu-1", "eu-2"]).prop_map(|zone| {
        let metadata = metadata("/node-a", &[("topology.kubernetes.io/zone", zone)]);
        Object::Node(Node { metadata })
    })
}

fn an_entry() -> impl Strategy<Value = Object> {
    (name(), labels(), selector(), option::of(select(vec!["10.7.0.1", "127.0.0.1"]))).prop_map(
        |(name, labels, more, address)| {
            Object::WorkloadEntry(WorkloadEntry {
                metadata: metadata(&name, &labels),
                labels: metadata(&name, &more).labels,
                address: address.map(ip),
                ports: [("web".to_owned(), 3000)].into(),
                ..WorkloadEntry::default()
            })
        },
    )
}

fn a_service_entry() -> impl Strategy<Value = Object> {
    let hosts = vec(select(vec!["x.example", "y.example", "a.shop.svc.cluster.local"]), 1..3);
    let resolution = select(vec![Resolution::None, Resolution::Static, Resolution::Dns]);
    let endpoints = vec(select(vec!["10.7.0.1", "10.7.0.2", "10.1.0.1"]), 0..3);
    (name(), hosts, selector(), resolution, endpoints, 0_i64..3).prop_map(
        |(name, hosts, selector, resolution, endpoints, created)| {
            let metadata = Metadata { created: Some(created), ..metadata(&name, &[]) };
            let endpoint = |address: &str| WorkloadEntry {
                metadata: metadata.clone(),
                address: Some(ip(address)),
                ..WorkloadEntry::default()
            };
            let hosts: BTreeSet<&str> = hosts.into_iter().collect();
            Object::ServiceEntry(ServiceEntry {
                hosts: hosts.into_iter().map(str::to_owned).collect(),
                addresses: vec!["240.0.0.1".parse().expect("an address")],
                ports: vec![EntryPort {
                    name: "web".into(),
                    port: 80,
                    target: Some(8080),
                    transport: Transport::Tcp,
                    protocol: "tcp".into(),
                }],
                resolution,
                endpoints: endpoints.into_iter().map(endpoint).collect(),
                selector: self::metadata(&name, &selector).labels,
                metadata: metadata.clone(),
                ..ServiceEntry::default()
            })
        },
    )
}

fn a_policy() -> impl Strategy<Value = Object> {
    let rule = select(vec!["any", "namespace", "http", "bad"]).prop_map(|kind| {
        let when = |key: &str| When { key: key.into(), values: vec!["v".into()], not_values: vec![] };
        match kind {
            "namespace" => {
                let source = Source { namespaces: vec!["shop".into()], ..Source::default() };
                PolicyRule { from: vec![source], ..PolicyRule::default() }
            }
            "http" => PolicyRule { when: vec![when("request.headers[x]")], ..PolicyRule::default() },
            "bad" => PolicyRule { when: vec![when("source.colour")], ..PolicyRule::default() },
            _ => PolicyRule::default(),
        }
    });
    let action = select(vec![PolicyAction::Allow, PolicyAction::Deny, PolicyAction::Custom]);
    (name(), selector(), action, vec(rule, 0..2)).prop_map(|(name, selector, action, rules)| {
        Object::AuthorizationPolicy(authorization(&name, &selector, action, rules))
    })
}

fn a_peer_authentication() -> impl Strategy<Value = Object> {
    let mode = || select(vec![MtlsMode::Unset, MtlsMode::Disable, MtlsMode::Permissive, MtlsMode::Strict]);
    let ports = vec((select(vec![1_u16, 2]), mode()), 0..3);
    (name(), selector(), mode(), ports, 0_i64..3).prop_map(|(name, selector, mode, ports, created)| {
        Object::PeerAuthentication(peer(&name, &selector, mode, &ports, created))
    })
}

fn an_object() -> impl Strategy<Value = Object> {
    let modes = vec!["", "ambient", "ambient", "ambient", "none"];
    prop_oneof![
        2 => (select(vec!["shop", "blog", "ambit-system"]), select(modes))
            .prop_map(|(name, mode)| namespace(name, mode)),
        4 => a_pod(),
        2 => a_service(),
        4 => a_slice(),
        1 => a_node(),
        1 => an_entry(),
        2 => a_service_entry(),
        2 => a_policy(),
        3 => a_peer_authentication(),
    ]
}

fn an_event() -> impl Strategy<Value = ObjectEvent> {
    prop_oneof![
        3 => an_object().prop_map(put),
        1 => an_object().prop_map(|object| ObjectEvent::Delete(object.key())),
    ]
}

/// The objects in force.
#[derive(Default)]
struct Expected {
    objects: BTreeMap<ObjectKey, Object>,
}

impl Expected {
    fn take(&mut self, event: &ObjectEvent) {
        match event {
            ObjectEvent::Put(object) => drop(self.objects.insert(object.key(), (**object).clone())),
            ObjectEvent::Delete(key) => drop(self.objects.remove(key)),
        }
    }
}

fn conditions(world: &World) -> Vec<Condition> {
    world.conditions().cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn incremental_derivation_equals_full(batches in vec(vec(an_event(), 0..4), 0..16)) {
        let mut world = World::new(Settings::default());
        let mut mesh = Mesh::new();
        let mut expected = Expected::default();
        for batch in batches {
            for event in &batch {
                expected.take(event);
            }
            let derived = world.apply(batch.clone());

            // Every change changes something, and no workload ever names a policy that is not there.
            for change in derived.changes {
                let touched = mesh.apply([change.clone()]);
                prop_assert!(!touched.is_empty(), "{:?} changes nothing", change);
                for workload in mesh.workloads() {
                    for policy in &workload.policies {
                        prop_assert!(mesh.policy(policy).is_some(), "{} names {}", workload.uid, policy);
                    }
                }
            }

            let mut scratch_world = World::new(Settings::default());
            let mut scratch = Mesh::new();
            scratch.apply(scratch_world.apply(expected.objects.values().cloned().map(put)).changes);
            prop_assert_eq!(&mesh, &scratch);
            prop_assert_eq!(conditions(&world), conditions(&scratch_world));
            prop_assert!(derived.conditions.iter().all(|news| world.conditions().any(|known| known == news)));

        }
    }
}

#[test]
fn generated_objects_cover_all_cases() {
    // Guards the property above against an accident that would leave it nothing to find.
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut policies, mut enrolled, mut listed, mut endpoints) = (0, 0, 0, 0);
    let (mut outside, mut pods) = (0, 0);
    for _ in 0..256 {
        let events = vec(an_event(), 80).new_tree(&mut runner).expect("a value").current();
        let mut mesh = Mesh::new();
        mesh.apply(World::new(Settings::default()).apply(events).changes);
        policies += mesh.policies().count();
        enrolled += mesh.workloads().filter(|workload| workload.in_mesh()).count();
        listed += mesh.workloads().filter(|workload| !workload.policies.is_empty()).count();
        endpoints += mesh.services().map(|service| mesh.endpoints(&service.key).count()).sum::<usize>();
        let of_slices =
            |workload: &Workload| workload.services.values().flatten().any(|m| m.target_port == 7070);
        outside += mesh.workloads().filter(|w| w.uid.0.contains("EndpointSlice")).count();
        pods += mesh.workloads().filter(|w| w.uid.0.contains("/Pod/") && of_slices(w)).count();
    }
    for (what, count) in [
        ("policies", policies),
        ("enrolled", enrolled),
        ("listed", listed),
        ("endpoints", endpoints),
        ("endpoints of slices", outside),
        ("pods in slices", pods),
    ] {
        assert!(count > 32, "{what}: {count}");
    }
}
