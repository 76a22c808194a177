//! What one pod's change costs in a large cluster: objects → changes → mesh, as the controller does it.
//! `cargo run --release -p ambit-core --example scale [PODS [SERVICES [NAMESPACES]]]`

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ambit_core::derive::{
    Metadata, Namespace, Object, ObjectEvent, Phase, Pod, PortRef, Service, ServicePort, Settings, Transport,
    World,
};
use ambit_core::mesh::Mesh;

/// How often each change is made.
const ROUNDS: u32 = 500;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let pods: u32 = arguments.next().unwrap_or(10_000);
    let services: u32 = arguments.next().unwrap_or(1_000);
    let namespaces: u32 = arguments.next().unwrap_or(100);
    println!("{pods} pods, {services} services, {namespaces} namespaces");

    let settings = Settings { enrolled_by_annotation: true, ..Settings::default() };
    let (mut world, mut mesh) = (World::new(settings), Mesh::new());
    let objects = (0..namespaces).map(namespace);
    let objects = objects.chain((0..services).map(|number| service(number, namespaces)));
    let objects = objects.chain((0..pods).map(|number| Object::Pod(pod(number, services, namespaces))));
    let events: Vec<_> = objects.map(put).collect();
    let start = Instant::now();
    let derived = world.apply(events);
    let middle = Instant::now();
    mesh.apply(derived.changes);
    println!("all at once: derive {:?}, apply {:?}", middle - start, middle.elapsed());
    assert_eq!(mesh.workloads().count(), pods as usize);

    let step = pods / ROUNDS.min(pods);
    let each =
        |make: &dyn Fn(u32) -> Object| (0..ROUNDS).map(|round| make(round * step % pods)).collect::<Vec<_>>();
    let of = |number: u32| pod(number, services, namespaces);
    let unready = each(&|number| Object::Pod(Pod { ready: false, ..of(number) }));
    measure("a pod is not ready any more", &mut world, &mut mesh, unready);
    measure("and is again", &mut world, &mut mesh, each(&|number| Object::Pod(of(number))));
    let moved = each(&|number| Object::Pod(Pod { addresses: vec![address(11, number)], ..of(number) }));
    measure("a pod's address changes", &mut world, &mut mesh, moved);
    let same = each(&|number| Object::Pod(Pod { addresses: vec![address(11, number)], ..of(number) }));
    measure("nothing changes", &mut world, &mut mesh, same);
    let rules = (0..services.min(ROUNDS)).map(|number| match service(number, namespaces) {
        Object::Service(it) => Object::Service(Service { publish_not_ready: true, ..it }),
        other => other,
    });
    measure("a service's rule changes", &mut world, &mut mesh, rules.collect());
}

/// Times one change at a time, with a snapshot of the mesh held by a reader, as there always is one.
fn measure(what: &str, world: &mut World, mesh: &mut Mesh, objects: Vec<Object>) {
    let (mut times, mut changes) = (Vec::with_capacity(objects.len()), 0);
    for object in objects {
        let snapshot = mesh.clone();
        let event = put(object);
        let start = Instant::now();
        let derived = world.apply([event]);
        changes += derived.changes.len();
        mesh.apply(derived.changes);
        times.push(start.elapsed());
        drop(snapshot);
    }
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    let total: Duration = times.iter().sum();
    println!(
        "{what}: {changes} changes of {}, median {:?}, p99 {:?}, mean {:?}",
        times.len(),
        at(50),
        at(99),
        total / u32::try_from(times.len()).expect("few")
    );
}

fn put(object: Object) -> ObjectEvent {
    ObjectEvent::Put(Box::new(object))
}

fn named(namespace: &str, name: String, labels: &[(&str, String)]) -> Metadata {
    let labels: BTreeMap<_, _> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Metadata { namespace: namespace.to_owned(), name, labels, ..Metadata::default() }
}

fn namespace(number: u32) -> Object {
    let labels = [("istio.io/dataplane-mode", "ambient".to_owned())];
    Object::Namespace(Namespace {
        metadata: named("", format!("ns-{number}"), &labels),
        ..Namespace::default()
    })
}

fn service(number: u32, namespaces: u32) -> Object {
    let namespace = format!("ns-{}", number % namespaces);
    let port = ServicePort {
        name: "http".to_owned(),
        port: 80,
        target: PortRef::Number(8080),
        transport: Transport::Tcp,
        app_protocol: String::new(),
    };
    Object::Service(Service {
        metadata: named(&namespace, format!("app-{number}"), &[]),
        cluster_ips: vec![address(96, number)],
        selector: [("app".to_owned(), format!("app-{number}"))].into(),
        ports: vec![port],
        ..Service::default()
    })
}

fn pod(number: u32, services: u32, namespaces: u32) -> Pod {
    let app = number % services;
    let labels = [
        ("app", format!("app-{app}")),
        ("pod-template-hash", "5d8f7".to_owned()),
        ("version", "v1".to_owned()),
    ];
    let mut metadata =
        named(&format!("ns-{}", app % namespaces), format!("app-{app}-5d8f7-{number}"), &labels);
    metadata.annotations = [("ambient.istio.io/redirection".to_owned(), "enabled".to_owned())].into();
    Pod {
        metadata,
        node: format!("node-{}", number % 200),
        phase: Phase::Running,
        addresses: vec![address(10, number)],
        ready: true,
        ..Pod::default()
    }
}

fn address(first: u8, number: u32) -> IpAddr {
    let [_, b, c, d] = number.to_be_bytes();
    Ipv4Addr::new(first, b, c, d).into()
}
