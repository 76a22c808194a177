//! Replays of what controllers say.

use ambit_core::mesh::{Change, Mesh};
use ambit_core::model::{PolicyKey, ServiceKey, WorkloadUid};
use prost::Message;
use prost_types::Any;

use super::State;
use crate::client::{Interest, Rejected};
use crate::proto::ambit::v1::ServiceRoutes;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use crate::proto::istio::security::Authorization;
use crate::proto::istio::workload::{Address, Service, Workload, address};
use crate::resource::ResourceType;

const ADDRESS: ResourceType = ResourceType::Address;
const POLICY: ResourceType = ResourceType::Authorization;

fn resource(kind: ResourceType, name: &str, version: &str, message: &impl Message) -> Resource {
    let body = Any { type_url: kind.type_url().to_owned(), value: message.encode_to_vec() };
    Resource { name: name.into(), version: version.into(), resource: Some(body), ..Default::default() }
}

fn workload(uid: &str, version: &str, ip: &[u8]) -> Resource {
    let workload = Workload {
        uid: uid.into(),
        namespace: "shop".into(),
        addresses: vec![ip.to_vec()],
        ..Default::default()
    };
    resource(ADDRESS, uid, version, &Address { r#type: Some(address::Type::Workload(workload)) })
}

fn service(name: &str, version: &str) -> Resource {
    let (namespace, hostname) = name.split_once('/').expect("a name");
    let service = Service { namespace: namespace.into(), hostname: hostname.into(), ..Default::default() };
    resource(ADDRESS, name, version, &Address { r#type: Some(address::Type::Service(service)) })
}

fn policy(name: &str, version: &str, action: i32) -> Resource {
    let (namespace, short) = name.split_once('/').expect("a name");
    let policy =
        Authorization { namespace: namespace.into(), name: short.into(), action, ..Default::default() };
    resource(POLICY, name, version, &policy)
}

fn response(kind: ResourceType, nonce: &str, put: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        nonce: nonce.to_owned(),
        resources: put,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

/// Takes a response, puts its changes into the mesh and answers.
fn take(state: &mut State, mesh: &mut Mesh, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    let mut received = state.receive(response).expect("a type that was asked for");
    mesh.apply(std::mem::take(&mut received.changes));
    state.answer(received, &[])
}

fn held(state: &State, kind: ResourceType) -> Vec<String> {
    let hello = state.subscribe(kind, "node-a");
    hello.initial_resource_versions.iter().map(|(name, version)| format!("{name}={version}")).collect()
}

fn problem(answer: &DeltaDiscoveryRequest) -> &str {
    answer.error_detail.as_ref().map_or("", |status| &status.message)
}

#[test]
fn a_stream_from_its_first_answer_to_a_reconnect() {
    let (mut state, mut mesh) = (State::default(), Mesh::default());
    let hello = state.subscribe(ADDRESS, "node-a");
    assert_eq!(hello.resource_names_subscribe, ["*"]);
    assert_eq!(hello.node.as_ref().map(|n| n.id.as_str()), Some("node-a"));
    assert!(hello.initial_resource_versions.is_empty());

    let put = vec![workload("w1", "1", &[10, 0, 0, 1]), service("shop/cart", "1")];
    let answer = take(&mut state, &mut mesh, response(ADDRESS, "n1", put, &[]));
    assert_eq!((answer.response_nonce.as_str(), problem(&answer)), ("n1", ""));
    assert!(answer.resource_names_subscribe.is_empty() && answer.initial_resource_versions.is_empty());
    assert!(!state.synced(), "policies have not been answered");
    take(&mut state, &mut mesh, response(POLICY, "n2", Vec::new(), &[]));
    assert!(state.synced(), "an empty answer is an answer");
    assert_eq!((mesh.workloads().count(), mesh.services().count()), (1, 1));

    // The address passes from a workload that leaves to one that comes.
    let put = vec![workload("w2", "1", &[10, 0, 0, 1])];
    take(&mut state, &mut mesh, response(ADDRESS, "n3", put, &["w1", "shop/cart", "never/seen"]));
    let owner = mesh.workload_by_address([10, 0, 0, 1].into()).expect("an owner");
    assert_eq!(owner.uid, WorkloadUid("w2".into()));
    assert_eq!(mesh.services().count(), 0);
    assert_eq!(held(&state, ADDRESS), ["w2=1"], "what a reconnect will claim");
}

#[test]
fn an_invalid_resource_leaves_its_last_version_and_the_others() {
    let (mut state, mut mesh) = (State::default(), Mesh::default());
    let put = vec![policy("shop/a", "1", 1), policy("shop/b", "1", 0)];
    take(&mut state, &mut mesh, response(POLICY, "n1", put, &[]));
    let put = vec![policy("shop/a", "2", 9), policy("shop/b", "2", 1), policy("shop/new", "1", 9)];
    let answer = take(&mut state, &mut mesh, response(POLICY, "n2", put, &[]));
    assert_eq!(answer.response_nonce, "n2");
    assert_eq!(problem(&answer), "shop/a: action: unknown value 9; shop/new: action: unknown value 9");
    let action = |name: &str| {
        let key = PolicyKey { namespace: "shop".into(), name: name.into() };
        mesh.policy(&key).map(|p| format!("{:?}", p.action))
    };
    assert_eq!(action("a"), Some("Deny".to_owned()), "the last good one");
    assert_eq!(action("b"), Some("Deny".to_owned()), "the new one");
    assert_eq!(action("new"), None);
    assert_eq!(held(&state, POLICY), ["shop/a=1", "shop/b=2"], "a reconnect asks for what was refused");
}

#[test]
fn resources_with_a_wrong_name_or_type_are_rejected() {
    let good = workload("w1", "1", &[10, 0, 0, 1]);
    let rows = [
        ("w1: resource: is missing", Resource { resource: None, ..good.clone() }),
        ("w9: name: the resource calls itself \"w1\"", Resource { name: "w9".into(), ..good.clone() }),
        ("w1: addresses[0]: an address has 4 or 16 bytes, not 3", workload("w1", "1", &[1, 2, 3])),
        (
            "w1: type: is neither a workload nor a service",
            resource(ADDRESS, "w1", "1", &Address { r#type: None }),
        ),
        (
            "shop/p: resource: has type \"type.googleapis.com/istio.security.Authorization\"",
            policy("shop/p", "1", 0),
        ),
    ];
    for (expected, bad) in rows {
        let (mut state, mut mesh) = (State::default(), Mesh::default());
        let other = workload("w2", "1", &[10, 0, 0, 2]);
        let answer = take(&mut state, &mut mesh, response(ADDRESS, "n", vec![bad, other], &[]));
        assert_eq!(problem(&answer), expected);
        assert_eq!(held(&state, ADDRESS), ["w2=1"], "{expected}");
        assert_eq!(mesh.workloads().count(), 1, "{expected}");
    }
    let garbage = Any { type_url: ADDRESS.type_url().to_owned(), value: vec![0xff; 9] };
    let (mut state, mut mesh) = (State::default(), Mesh::default());
    let bad = Resource { resource: Some(garbage), ..good };
    let answer = take(&mut state, &mut mesh, response(ADDRESS, "n", vec![bad], &[]));
    assert!(problem(&answer).starts_with("w1: resource: failed to decode"), "{}", problem(&answer));
}

#[test]
fn resources_that_the_caller_rejects_are_reported_and_not_held() {
    let mut state = State::default();
    let put = vec![workload("w1", "1", &[10, 0, 0, 1]), workload("w2", "1", &[10, 0, 0, 2])];
    let received = state.receive(response(ADDRESS, "n1", put, &[])).expect("addresses");
    assert_eq!(received.changes.len(), 2);
    let refused = Rejected { resource: "w2".into(), reason: "no room".into() };
    let answer = state.answer(received, &[refused]);
    assert_eq!(problem(&answer), "w2: no room");
    assert_eq!(held(&state, ADDRESS), ["w1=1"]);
}

#[test]
fn a_nack_lists_at_most_ten_problems() {
    let (mut state, mut mesh) = (State::default(), Mesh::default());
    let put = (0..25).map(|n| policy(&format!("shop/p{n:02}"), "1", 9)).collect();
    let answer = take(&mut state, &mut mesh, response(POLICY, "n", put, &[]));
    assert!(
        problem(&answer).ends_with("shop/p09: action: unknown value 9; and 15 more"),
        "{}",
        problem(&answer)
    );
}

#[test]
fn a_name_with_another_resource_removes_the_old_one() {
    let (mut state, mut mesh) = (State::default(), Mesh::default());
    take(&mut state, &mut mesh, response(ADDRESS, "n1", vec![service("shop/x", "1")], &[]));
    let received = state.receive(response(ADDRESS, "n2", vec![workload("shop/x", "2", &[10, 0, 0, 1])], &[]));
    let received = received.expect("addresses");
    assert!(
        matches!(&received.changes[..], [Change::RemoveService(_), Change::PutWorkload(_)]),
        "{received:?}"
    );
}

#[test]
fn types_without_subscription_are_ignored() {
    let unknown = DeltaDiscoveryResponse { type_url: "type/other".into(), ..Default::default() };
    assert!(State::default().receive(unknown).is_none());
}

fn bound_service(name: &str, version: &str, waypoint: &str) -> Resource {
    use crate::proto::istio::workload::{GatewayAddress, NamespacedHostname, gateway_address};
    let (namespace, hostname) = name.split_once('/').expect("a name");
    let (of, host) = waypoint.split_once('/').expect("a name");
    let at = NamespacedHostname { namespace: of.into(), hostname: host.into() };
    let destination = Some(gateway_address::Destination::Hostname(at));
    let service = Service {
        namespace: namespace.into(),
        hostname: hostname.into(),
        waypoint: Some(GatewayAddress { destination, hbone_mtls_port: 15008 }),
        ..Default::default()
    };
    resource(ADDRESS, name, version, &Address { r#type: Some(address::Type::Service(service)) })
}

fn routes(name: &str, version: &str) -> Resource {
    let (namespace, hostname) = name.split_once('/').expect("a name");
    let routes =
        ServiceRoutes { namespace: namespace.into(), hostname: hostname.into(), ..Default::default() };
    resource(ROUTES, name, version, &routes)
}

const ROUTES: ResourceType = ResourceType::Routes;

#[test]
fn a_node_asks_for_no_routes() {
    let mut state = State::default();
    let types: Vec<String> = state.subscribe_all("node-a").into_iter().map(|it| it.type_url).collect();
    assert_eq!(types, [POLICY.type_url(), ADDRESS.type_url()]);
    let mut mesh = Mesh::default();
    take(&mut state, &mut mesh, response(POLICY, "1", vec![], &[]));
    take(
        &mut state,
        &mut mesh,
        response(ADDRESS, "2", vec![bound_service("shop/cart", "1", "shop/wp")], &[]),
    );
    assert!(state.synced(), "routes are not waited for");
    assert_eq!(state.resubscribe("node-a"), None);
}

#[test]
fn a_waypoint_asks_for_the_routes_of_what_it_fronts() {
    let own = ServiceKey { namespace: "shop".into(), hostname: "wp".into() };
    let mut state = State::new(Interest::Waypoint(own));
    let mut mesh = Mesh::default();
    assert_eq!(state.subscribe_all("wp").len(), 2, "nothing is known to be fronted");
    take(&mut state, &mut mesh, response(POLICY, "1", vec![], &[]));
    let put = vec![
        bound_service("shop/cart", "1", "shop/wp"),
        bound_service("shop/api", "1", "shop/other"),
        service("shop/db", "1"),
    ];
    take(&mut state, &mut mesh, response(ADDRESS, "2", put, &[]));
    assert!(!state.synced(), "its routes are to come");
    let asked = state.resubscribe("wp").expect("a subscription");
    assert_eq!(
        (asked.type_url.as_str(), &asked.resource_names_subscribe[..]),
        (ROUTES.type_url(), &["shop/cart".to_owned()][..])
    );
    assert_eq!(state.resubscribe("wp"), None, "asked once");
    take(&mut state, &mut mesh, response(ROUTES, "3", vec![routes("shop/cart", "7")], &[]));
    assert!(state.synced() && mesh.all_routes().count() == 1);

    // Another service comes, and this one gets another waypoint.
    let put = vec![bound_service("shop/cart", "2", "shop/other"), bound_service("shop/api", "2", "shop/wp")];
    take(&mut state, &mut mesh, response(ADDRESS, "4", put, &[]));
    assert_eq!(mesh.all_routes().count(), 0, "what is not fronted has no routes here");
    let asked = state.resubscribe("wp").expect("a change");
    assert_eq!(asked.resource_names_subscribe, ["shop/api"]);
    assert_eq!(asked.resource_names_unsubscribe, ["shop/cart"]);
    assert!(asked.node.is_none() && asked.initial_resource_versions.is_empty(), "a stream's later request");
    take(&mut state, &mut mesh, response(ROUTES, "5", vec![routes("shop/api", "1")], &[]));

    // A new stream begins with what is held.
    let first = state.subscribe_all("wp");
    assert_eq!(first.len(), 3);
    assert_eq!(first[2].resource_names_subscribe, ["shop/api"]);
    let held: Vec<_> = first[2].initial_resource_versions.iter().collect();
    assert_eq!(held, [(&"shop/api".to_owned(), &"1".to_owned())]);
    take(&mut state, &mut mesh, response(ADDRESS, "6", vec![], &["shop/api"]));
    assert_eq!(mesh.all_routes().count(), 0, "a service that is gone has none either");
    assert_eq!(state.resubscribe("wp").expect("a change").resource_names_unsubscribe, ["shop/api"]);
}
