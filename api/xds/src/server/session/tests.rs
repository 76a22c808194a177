//! Replays of what clients say, and a client made of chance that must always end up with what is published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::{Received, Session, Violation};
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status};
use crate::resource::{COUNT, Encoded, ResourceType};
use crate::server::reply::Whole;
use crate::server::store::{Behind, Store};

const ADDRESS: ResourceType = ResourceType::Address;
const POLICY: ResourceType = ResourceType::Authorization;

fn resource(name: &str, version: &str) -> Encoded {
    Encoded::assemble(ADDRESS, name.into(), Vec::new(), version.into(), b"body".to_vec())
}

fn store(resources: &[(ResourceType, &str, &str)]) -> Store {
    let mut store = Store::default();
    for (kind, name, version) in resources {
        assert!(store.put(*kind, resource(name, version)));
    }
    store.set_ready();
    store
}

fn request(kind: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: kind.type_url().to_owned(), ..Default::default() }
}

fn subscribe(kind: ResourceType, names: &[&str], held: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        initial_resource_versions: held.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        ..request(kind)
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..Default::default()
    }
}

fn nack(response: &DeltaDiscoveryResponse, message: &str) -> DeltaDiscoveryRequest {
    let status = Status { code: 3, message: message.to_owned(), details: Vec::new() };
    DeltaDiscoveryRequest { error_detail: Some(status), ..ack(response) }
}

/// `+name=version` for what is sent, `-name` for what is removed.
fn told(response: &DeltaDiscoveryResponse) -> String {
    let put = response.resources.iter().map(|r| format!("+{}={}", r.name, r.version));
    let removed = response.removed_resources.iter().map(|name| format!("-{name}"));
    put.chain(removed).collect::<Vec<_>>().join(" ")
}

fn next(session: &mut Session, store: &Store) -> DeltaDiscoveryResponse {
    let reply = session.next(store).expect("not behind").expect("a response");
    reply.encode(&Whole::default()).expect("not too large").decode()
}

fn silent(session: &mut Session, store: &Store) -> bool {
    session.next(store).expect("not behind").is_none()
}

/// Case, names subscribed to, what is claimed to be held, what is told.
type Row = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)], &'static str);

#[test]
fn first_responses() {
    let published = [(ADDRESS, "a", "1"), (ADDRESS, "b", "1"), (ADDRESS, "c", "1")];
    let rows: [Row; 8] = [
        ("wildcard by leaving names out", &[], &[], "+a=1 +b=1 +c=1"),
        ("wildcard by name", &["*"], &[], "+a=1 +b=1 +c=1"),
        ("holds everything", &["*"], &[("a", "1"), ("b", "1"), ("c", "1")], ""),
        ("holds an old version", &["*"], &[("a", "1"), ("b", "0"), ("c", "1")], "+b=1"),
        ("holds what is gone", &["*"], &[("a", "1"), ("b", "1"), ("c", "1"), ("old", "1")], "-old"),
        ("some of each", &["*"], &[("b", "0"), ("c", "1"), ("x", "1"), ("y", "1")], "+a=1 +b=1 -x -y"),
        ("names, one unknown", &["b", "nil"], &[], "+b=1 -nil"),
        ("names, one of them held", &["a", "b"], &[("b", "1")], "+a=1"),
    ];
    for (name, names, held, expected) in rows {
        let store = store(&published);
        let mut session = Session::default();
        assert_eq!(session.receive(subscribe(ADDRESS, names, held)), Ok(Received::Subscribed), "{name}");
        let response = next(&mut session, &store);
        assert_eq!(told(&response), expected, "{name}");
        session.receive(ack(&response)).expect("an ack");
        assert!(silent(&mut session, &store), "{name}: twice");
    }
}

#[test]
fn full_responses_share_their_bytes() {
    let mut store = store(&[(ADDRESS, "a", "1"), (ADDRESS, "b", "1")]);
    let whole = Whole::default();
    let first = |store: &Store, held: &[(&str, &str)]| {
        let mut session = Session::default();
        session.receive(subscribe(ADDRESS, &["*"], held)).expect("a request");
        let reply = session.next(store).expect("not behind").expect("a response");
        reply.encode(&whole).expect("not too large")
    };
    let one = first(&store, &[]);
    let other = first(&store, &[]);
    assert_eq!(one.address(), other.address());
    assert_eq!(told(&other.decode()), "+a=1 +b=1");
    assert_eq!(told(&first(&store, &[("a", "1")]).decode()), "+b=1", "the difference is its own");
    store.put(ADDRESS, resource("c", "1"));
    assert_eq!(told(&first(&store, &[]).decode()), "+a=1 +b=1 +c=1", "of this revision");
}

#[test]
fn nothing_is_sent_before_the_first_publication() {
    let mut store = Store::default();
    let mut session = Session::default();
    session.receive(subscribe(ADDRESS, &["*"], &[("a", "1")])).expect("a request");
    assert!(silent(&mut session, &store), "an empty store would have taken a back");
    store.put(ADDRESS, resource("a", "1"));
    assert!(silent(&mut session, &store));
    store.set_ready();
    assert_eq!(told(&next(&mut session, &store)), "");
}

#[test]
fn changes_are_coalesced_until_the_client_answers() {
    let mut store = store(&[(ADDRESS, "a", "1"), (ADDRESS, "b", "1")]);
    let mut session = Session::default();
    session.receive(subscribe(ADDRESS, &["*"], &[])).expect("a request");
    let first = next(&mut session, &store);
    for version in 2..100 {
        store.put(ADDRESS, resource("a", &version.to_string()));
        store.put(ADDRESS, resource("fleeting", "1"));
        store.remove(ADDRESS, "fleeting");
        assert!(silent(&mut session, &store), "a response is under way");
    }
    store.remove(ADDRESS, "b");
    session.receive(ack(&first)).expect("an ack");
    let second = next(&mut session, &store);
    assert_eq!(told(&second), "+a=99 -fleeting -b");
    assert_eq!(session.receive(ack(&second)), Ok(Received::Ack));
    assert!(silent(&mut session, &store));
}

#[test]
fn equal_content_is_not_sent_again() {
    let mut store = store(&[(ADDRESS, "a", "1")]);
    let mut session = Session::default();
    session.receive(subscribe(ADDRESS, &["*"], &[])).expect("a request");
    let response = next(&mut session, &store);
    session.receive(ack(&response)).expect("an ack");
    assert!(!store.put(ADDRESS, resource("a", "1")));
    assert!(!store.remove(ADDRESS, "never there"));
    assert!(silent(&mut session, &store));
}

#[test]
fn policies_go_first_and_types_do_not_wait_for_each_other() {
    let mut store = store(&[(ADDRESS, "a", "1"), (POLICY, "p", "1")]);
    let mut session = Session::default();
    session.receive(subscribe(ADDRESS, &["*"], &[])).expect("a request");
    session.receive(subscribe(POLICY, &["*"], &[])).expect("a request");
    let policies = next(&mut session, &store);
    assert_eq!((policies.type_url.as_str(), told(&policies).as_str()), (POLICY.type_url(), "+p=1"));
    let addresses = next(&mut session, &store);
    assert_eq!((addresses.type_url.as_str(), told(&addresses).as_str()), (ADDRESS.type_url(), "+a=1"));
    store.put(ADDRESS, resource("a", "2"));
    assert!(silent(&mut session, &store));
    session.receive(ack(&addresses)).expect("an ack");
    assert_eq!(told(&next(&mut session, &store)), "+a=2", "policies are still unanswered");
}

#[test]
fn a_rejected_resource_is_not_sent_again_until_it_changes() {
    let mut store = store(&[(POLICY, "p", "1")]);
    let mut session = Session::default();
    session.receive(subscribe(POLICY, &["*"], &[])).expect("a request");
    let response = next(&mut session, &store);
    let received = session.receive(nack(&response, "p: action: unknown value 9"));
    assert_eq!(
        received,
        Ok(Received::Nack { kind: POLICY, message: "p: action: unknown value 9".to_owned() })
    );
    assert!(silent(&mut session, &store));
    store.put(POLICY, resource("p", "2"));
    assert_eq!(told(&next(&mut session, &store)), "+p=2");
}

#[test]
fn an_answer_to_an_earlier_response_is_ignored() {
    let mut store = store(&[(ADDRESS, "a", "1")]);
    let mut session = Session::default();
    session.receive(subscribe(ADDRESS, &["*"], &[])).expect("a request");
    let first = next(&mut session, &store);
    session.receive(ack(&first)).expect("an ack");
    store.put(ADDRESS, resource("a", "2"));
    let second = next(&mut session, &store);
    store.put(ADDRESS, resource("a", "3"));
    assert_eq!(session.receive(ack(&first)), Ok(Received::Stale));
    assert!(silent(&mut session, &store));
    assert_eq!(session.receive(ack(&second)), Ok(Received::Ack));
    assert_eq!(told(&next(&mut session, &store)), "+a=3");
}

#[test]
fn subscriptions_by_name_change() {
    let mut store = store(&[(ADDRESS, "a", "1"), (ADDRESS, "b", "1"), (ADDRESS, "c", "1")]);
    let mut session = Session::default();
    session.receive(subscribe(ADDRESS, &["a"], &[])).expect("a request");
    let response = next(&mut session, &store);
    assert_eq!(told(&response), "+a=1");
    let more =
        DeltaDiscoveryRequest { resource_names_subscribe: vec!["b".into(), "nil".into()], ..ack(&response) };
    session.receive(more).expect("a request");
    let response = next(&mut session, &store);
    assert_eq!(told(&response), "+b=1 -nil");
    session.receive(ack(&response)).expect("an ack");
    store.put(ADDRESS, resource("c", "2"));
    store.remove(ADDRESS, "c");
    assert!(silent(&mut session, &store), "not subscribed to");
    let less = DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["a".into()], ..request(ADDRESS) };
    session.receive(less).expect("a request");
    store.put(ADDRESS, resource("a", "2"));
    store.put(ADDRESS, resource("b", "2"));
    let response = next(&mut session, &store);
    assert_eq!(told(&response), "+b=2");
    session.receive(ack(&response)).expect("an ack");
    session.receive(subscribe(ADDRESS, &["b"], &[])).expect("a request");
    let response = next(&mut session, &store);
    assert_eq!(told(&response), "+b=2", "who subscribes again asks again");
    session.receive(ack(&response)).expect("an ack");
    session.receive(subscribe(ADDRESS, &["*"], &[])).expect("a request");
    assert_eq!(told(&next(&mut session, &store)), "+a=2 +b=2 -nil");
}

#[test]
fn a_clients_state_is_bounded() {
    let store = store(&[]);
    let mut session = Session::default();
    for n in 0..16 {
        let request = DeltaDiscoveryRequest { type_url: format!("type/{n}"), ..Default::default() };
        assert_eq!(session.receive(request.clone()), Ok(Received::Unknown));
        let response = next(&mut session, &store);
        assert_eq!((response.type_url.as_str(), told(&response).as_str()), (request.type_url.as_str(), ""));
        assert_eq!(session.receive(ack(&response)), Ok(Received::Unknown));
        assert!(silent(&mut session, &store), "one answer is enough");
    }
    let one_more = DeltaDiscoveryRequest { type_url: "one more".into(), ..Default::default() };
    assert_eq!(session.receive(one_more), Err(Violation::UnknownTypes));

    let names: Vec<String> = (0..10_001).map(|n| n.to_string()).collect();
    let many = DeltaDiscoveryRequest { resource_names_subscribe: names, ..request(ADDRESS) };
    assert_eq!(Session::default().receive(many), Err(Violation::TooManyNames));
    let long = "x".repeat(1_025);
    assert_eq!(Session::default().receive(subscribe(ADDRESS, &[&long], &[])), Err(Violation::LongName));
}

#[test]
fn a_session_that_is_too_far_behind_ends_and_the_next_catches_up() {
    let mut store = Store::with_removals(3);
    store.set_ready();
    for n in 0..10 {
        store.put(ADDRESS, resource(&n.to_string(), "1"));
    }
    let mut session = Session::default();
    session.receive(subscribe(ADDRESS, &["*"], &[])).expect("a request");
    let response = next(&mut session, &store);
    let held: Vec<(String, String)> =
        response.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
    for n in 0..10 {
        store.remove(ADDRESS, &n.to_string());
    }
    session.receive(ack(&response)).expect("an ack");
    assert_eq!(session.next(&store).map(drop), Err(Behind));

    let mut session = Session::default();
    let held: Vec<(&str, &str)> = held.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    session.receive(subscribe(ADDRESS, &["*"], &held)).expect("a request");
    assert_eq!(told(&next(&mut session, &store)), "-0 -1 -2 -3 -4 -5 -6 -7 -8 -9");
}

/// What may happen between a store and a client.
#[derive(Clone, Debug)]
enum Event {
    Put(ResourceType, u8, u8),
    Remove(ResourceType, u8),
    Read,
    Ack,
    Nack,
    Reconnect,
}

fn event() -> impl Strategy<Value = Event> {
    let kind = || prop_oneof![Just(ADDRESS), Just(POLICY), Just(ResourceType::Routes)];
    prop_oneof![
        4 => (kind(), 0..12_u8, 0..3_u8).prop_map(|(kind, name, version)| Event::Put(kind, name, version)),
        3 => (kind(), 0..12_u8).prop_map(|(kind, name)| Event::Remove(kind, name)),
        4 => Just(Event::Read),
        3 => Just(Event::Ack),
        1 => Just(Event::Nack),
        1 => Just(Event::Reconnect),
    ]
}

/// A client that keeps what it is sent, and checks that it was not sent in vain.
#[derive(Default)]
struct Client {
    held: [BTreeMap<String, String>; COUNT],
    unanswered: Vec<DeltaDiscoveryResponse>,
    session: Session,
    whole: Whole,
}

impl Client {
    fn connect(&mut self) {
        self.session = Session::default();
        self.unanswered.clear();
        for kind in ResourceType::ALL {
            let initial_resource_versions = self.held[kind.index()].clone();
            let request = DeltaDiscoveryRequest { initial_resource_versions, ..subscribe(kind, &["*"], &[]) };
            self.session.receive(request).expect("a request");
        }
    }

    /// Takes a response if there is one.
    fn read(&mut self, store: &Store) -> bool {
        let response = match self.session.next(store) {
            Ok(Some(reply)) => reply.encode(&self.whole).expect("not too large").decode(),
            Ok(None) => return false,
            Err(Behind) => {
                self.connect();
                return true;
            }
        };
        let kind = ResourceType::from_type_url(&response.type_url).expect("a known type");
        let held = &mut self.held[kind.index()];
        let mut seen = BTreeSet::new();
        for resource in &response.resources {
            assert!(seen.insert(&resource.name), "{} twice in one response", resource.name);
            held.insert(resource.name.clone(), resource.version.clone());
        }
        for name in &response.removed_resources {
            assert!(seen.insert(name), "{name} both sent and removed");
            held.remove(name);
        }
        self.unanswered.push(response);
        true
    }

    fn answer(&mut self, with: impl FnOnce(&DeltaDiscoveryResponse) -> DeltaDiscoveryRequest) -> bool {
        let Some(response) = self.unanswered.pop() else { return false };
        self.session.receive(with(&response)).expect("an answer");
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn clients_converge_to_published_state(events in prop::collection::vec(event(), 0..120)) {
        let mut store = Store::with_removals(4);
        store.set_ready();
        let mut client = Client::default();
        client.connect();
        for event in events {
            match event {
                Event::Put(kind, name, version) => {
                    store.put(kind, resource(&name.to_string(), &version.to_string()));
                }
                Event::Remove(kind, name) => {
                    store.remove(kind, &name.to_string());
                }
                Event::Read => {
                    client.read(&store);
                }
                Event::Ack => {
                    client.answer(ack);
                }
                Event::Nack => {
                    client.answer(|response| nack(response, "no"));
                }
                Event::Reconnect => client.connect(),
            }
            prop_assert!(client.unanswered.len() <= COUNT, "one response of a type at a time");
        }
        while client.read(&store) || client.answer(ack) {}
        for kind in ResourceType::ALL {
            let published: BTreeMap<String, String> =
                store.all(kind).map(|r: &Arc<Encoded>| (r.name.to_string(), r.version.to_string())).collect();
            prop_assert_eq!(&client.held[kind.index()], &published);
        }
        // A client that reconnects gets an empty response.
        client.connect();
        while client.read(&store) {
            let response = client.unanswered.last().expect("a response");
            prop_assert_eq!(told(response), "");
            client.answer(ack);
        }
    }
}

#[test]
fn names_of_many_bytes_are_refused() {
    let long = |n: usize| format!("{n:01000}");
    let names: Vec<String> = (0..2_000).map(long).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut session = Session::default();
    assert_eq!(session.receive(subscribe(ADDRESS, &names, &[])), Err(Violation::ManyBytes));
    // Names that were given up do not count.
    let mut session = Session::default();
    for chunk in names.chunks(500) {
        session.receive(subscribe(ADDRESS, chunk, &[])).unwrap();
        let unsubscribe = DeltaDiscoveryRequest {
            resource_names_unsubscribe: chunk.iter().map(ToString::to_string).collect(),
            ..request(ADDRESS)
        };
        session.receive(unsubscribe).unwrap();
    }
}
