//! A file of objects: every document is accepted, ignored or rejected. An accepted object reads the same from
//! its saved form, derivation gives the same result in steps and at once, and derived resources survive
//! encoding.
#![no_main]

use ambit_core::derive::{ObjectEvent, Settings, World};
use ambit_core::mesh::{Change, Mesh};
use ambit_crd::{Outcome, parse, parse_object};
use ambit_xds::convert;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut objects = Vec::new();
    for document in parse(text) {
        if let Outcome::Accepted { object, source } = document.outcome {
            let saved = serde_json::to_string(&source).expect("JSON");
            let read = parse_object(serde_json::from_str(&saved).expect("the same JSON"));
            assert_eq!(read, Outcome::Accepted { object: object.clone(), source });
            objects.push(*object);
        }
    }
    let (mut world, mut mesh) = (World::new(Settings::default()), Mesh::new());
    for object in &objects {
        let derived = world.apply([ObjectEvent::Put(Box::new(object.clone()))]);
        derived.changes.iter().for_each(assert_survives_encoding);
        mesh.apply(derived.changes);
    }
    let mut at_once = Mesh::new();
    let events = objects.iter().map(|object| ObjectEvent::Put(Box::new(object.clone())));
    at_once.apply(World::new(Settings::default()).apply(events.collect::<Vec<_>>()).changes);
    let same = mesh.workloads().eq(at_once.workloads())
        && mesh.services().eq(at_once.services())
        && mesh.policies().eq(at_once.policies());
    assert!(same, "in steps and at once, the result is the same");

    let deletions = objects.iter().map(|object| ObjectEvent::Delete(object.key()));
    mesh.apply(world.apply(deletions.collect::<Vec<_>>()).changes);
    let empty = mesh.workloads().next().is_none()
        && mesh.services().next().is_none()
        && mesh.policies().next().is_none();
    assert!(empty, "nothing is derived from no objects");
});

fn assert_survives_encoding(change: &Change) {
    match change {
        Change::PutWorkload(workload) => {
            let read = convert::decode_workload(&convert::encode_workload(workload));
            assert_eq!(read.as_ref(), Ok(&**workload));
        }
        Change::PutService(service) => {
            let read = convert::decode_service(&convert::encode_service(service));
            assert_eq!(read.as_ref(), Ok(&**service));
        }
        Change::PutPolicy(policy) => {
            let read = convert::decode_authorization(&convert::encode_authorization(policy));
            assert_eq!(read.as_ref(), Ok(&**policy));
        }
        Change::PutRoutes(routes) => {
            let read = convert::decode_routes(&convert::encode_routes(routes));
            assert_eq!(read.as_ref(), Ok(&**routes));
        }
        Change::RemoveWorkload(_)
        | Change::RemoveService(_)
        | Change::RemovePolicy(_)
        | Change::RemoveRoutes(_) => {}
    }
}
