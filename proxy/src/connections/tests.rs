use ambit_core::Reason;
use ambit_core::mesh::Change;
use ambit_core::model::{Action, Workload};
use futures::FutureExt as _;

use super::*;
use crate::report::{Party, Path};
use crate::testing::{mesh, policy, put, workload};

fn info(direction: Direction, source: &Workload, destination: &Workload) -> ConnectionInfo {
    let party = |workload: &Workload, port| Party {
        address: std::net::SocketAddr::new(workload.addresses[0], port),
        workload: Some(Arc::new(workload.clone())),
        identity: Some(workload.identity()),
    };
    ConnectionInfo {
        direction,
        path: Path::Tunnel,
        mutual_tls: true,
        source: party(source, 4000),
        destination: party(destination, 15008),
        hbone_address: Some(std::net::SocketAddr::new(destination.addresses[0], 8080)),
        client: None,
        service: None,
    }
}

fn ended(registered: &Registered) -> Option<Ending> {
    registered.denied().now_or_never()
}

#[test]
fn connection_ended_when_a_change_denies_it() {
    let (web, legacy) = (workload("web", &["10.0.0.1"]), workload("legacy", &["10.0.0.2"]));
    let cart = workload("cart", &["10.0.1.1"]);
    let connections = Arc::new(Connections::default());
    let open = |direction, source| connections.open(info(direction, source, &cart), None);
    let from_web = open(Direction::Inbound, &web);
    let from_legacy = open(Direction::Inbound, &legacy);
    let outbound = open(Direction::Outbound, &legacy);

    let mut mesh = mesh([put(web), put(legacy), put(cart.clone())]);
    connections.recheck(&mesh, None);
    assert!(ended(&from_web).is_none() && ended(&from_legacy).is_none(), "no policy");

    let deny = Change::PutPolicy(Arc::new(policy("deny-legacy", Action::Deny, &["legacy"])));
    let touched = mesh.apply([deny]);
    connections.recheck(&mesh, Some(&touched));
    let ending = ended(&from_legacy).expect("denied");
    assert_eq!(ending.reason, Reason::PolicyDenied);
    assert_eq!(ending.policy.map(|policy| policy.to_string()).as_deref(), Some("shop/deny-legacy"));
    assert!(ended(&from_web).is_none());
    assert!(ended(&outbound).is_none(), "enforcement is at the destination");

    let touched = mesh.apply([Change::RemoveWorkload(cart.uid)]);
    connections.recheck(&mesh, Some(&touched));
    assert_eq!(ended(&from_web).expect("the destination left").reason, Reason::WorkloadUnknown);
}

#[test]
fn connection_kept_when_the_change_is_elsewhere() {
    let (web, cart) = (workload("web", &["10.0.0.1"]), workload("cart", &["10.0.1.1"]));
    let connections = Arc::new(Connections::default());
    let open = connections.open(info(Direction::Inbound, &web, &cart), None);
    // A mesh without the destination would end it, if anybody asked.
    let mut other = mesh([]);
    let touched = other.apply([put(workload("other", &["10.0.0.9"]))]);
    connections.recheck(&other, Some(&touched));
    assert!(ended(&open).is_none());
    open.recheck(&other);
    assert!(ended(&open).is_some());
}

#[test]
fn list_shows_open_connections() {
    let (web, cart) = (workload("web", &["10.0.0.1"]), workload("cart", &["10.0.1.1"]));
    let connections = Arc::new(Connections::default());
    let open = connections.open(info(Direction::Inbound, &web, &cart), None);
    assert_eq!(connections.list().len(), 1);
    let view = serde_json::to_value(&connections.list()[0]).unwrap();
    assert_eq!(view["direction"], "inbound");
    assert_eq!(view["source"]["address"], "10.0.0.1:4000");
    assert_eq!(view["destination"]["workload"], cart.uid.to_string());
    open.close(ending::orderly());
    assert!(connections.list().is_empty());
}
