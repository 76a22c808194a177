//! Controller and daemons over TLS on loopback: what is sent, what is not, and what happens when one of them
//! is gone, slow, hostile or unknown.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use ambit_core::mesh::Change;
use ambit_core::model::{Action, Identity, PolicyKey};
use ambit_xds::client::{Connection, Rejected, Status};
use ambit_xds::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use ambit_xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use ambit_xds::proto::istio::v1::auth::IstioCertificateRequest;
use ambit_xds::proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use ambit_xds::{ResourceType, ca};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use support::{Controller, Daemon, Road, Root, Traffic, connection, policy, put, soon, uid};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Streaming};

/// A client that says what the test wants: tonic's, without any of ours.
struct Raw {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Raw {
    async fn open(connection: &Connection) -> Result<Self, tonic::Status> {
        Self::open_on(channel(connection).await, &connection.token).await
    }

    async fn open_on(channel: Channel, token: &str) -> Result<Self, tonic::Status> {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        let bearer = format!("Bearer {token}").parse().expect("a header");
        request.metadata_mut().insert("authorization", bearer);
        let responses =
            AggregatedDiscoveryServiceClient::new(channel).delta_aggregated_resources(request).await?;
        Ok(Self { requests, responses: responses.into_inner() })
    }

    async fn subscribe(&self, kind: ResourceType) {
        let request = DeltaDiscoveryRequest { type_url: kind.type_url().to_owned(), ..Default::default() };
        self.requests.send(request).await.expect("an open stream");
    }
}

async fn channel(connection: &Connection) -> Channel {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&connection.root_pem))
        .domain_name(&connection.server_name);
    let endpoint = Endpoint::from_shared(connection.endpoint.clone()).expect("an endpoint").tls_config(tls);
    soon("connecting", endpoint.expect("TLS settings").connect()).await.expect("a connection")
}

#[tokio::test]
async fn first_sync_then_changes_then_removals() {
    let root = Root::new();
    let changes = vec![put("a", [10, 0, 0, 1]), put("b", [10, 0, 0, 2]), policy("p", Action::Deny)];
    let mut controller = Controller::start(&root, changes).await;
    let mut daemon = Daemon::start(controller.connection(&root, "node-a"));
    daemon.status("sync", |s| s.connected && s.synced).await;
    let mesh = daemon.mesh.borrow().clone();
    assert_eq!((mesh.workloads().count(), mesh.policies().count()), (2, 1));
    assert_eq!(mesh.workload(&uid("a")), controller.mesh.workload(&uid("a")), "as it was published");
    assert_eq!(controller.publisher.stats().sent, 3);

    controller.apply(vec![put("a", [10, 0, 0, 9])]);
    daemon.until("a change", |m| m.workload_by_address([10, 0, 0, 9].into()).is_some()).await;
    assert_eq!(controller.publisher.stats().sent, 4, "only what changed");

    controller.apply(vec![put("a", [10, 0, 0, 9])]);
    controller.apply(vec![Change::RemoveWorkload(uid("b")), policy("q", Action::Allow)]);
    daemon
        .until("a removal and a policy", |m| m.workload(&uid("b")).is_none() && m.policies().count() == 2)
        .await;
    let stats = controller.publisher.stats();
    assert_eq!((stats.sent, stats.removed, stats.addresses, stats.authorizations), (5, 1, 1, 2));
    // Two first answers, and three more.
    controller.stats("every response is answered", |s| s.acks == 5 && s.nacks == 0).await;
    assert_eq!(stats.clients, 1);
    drop(daemon);
    controller.stats("the daemon is gone", |s| s.clients == 0).await;
    controller.stop().await;
}

#[tokio::test]
async fn an_empty_mesh_gets_an_empty_response() {
    let root = Root::new();
    let controller = Controller::start(&root, Vec::new()).await;
    let mut daemon = Daemon::start(controller.connection(&root, "node-a"));
    daemon.status("sync", |s| s.synced).await;
    controller.stop().await;
}

#[tokio::test]
async fn after_a_lost_connection_only_the_difference_is_sent() {
    let root = Root::new();
    let changes = (1..=50).map(|n| put(&format!("w{n}"), [10, 0, 0, n])).collect();
    let mut controller = Controller::start(&root, changes).await;
    let road = Road::to(controller.address).await;
    let mut daemon = Daemon::start(connection(road.address, &root, "node-a"));
    daemon.until("sync", |m| m.workloads().count() == 50).await;
    daemon.status("sync", |s| s.synced).await;
    controller.stats("acknowledged", |s| s.acks == 2).await;
    assert_eq!(controller.publisher.stats().sent, 50);

    road.traffic.send_replace(Traffic::Closed);
    let status = daemon.status("the loss is noticed", |s| !s.connected).await;
    assert!(status.synced && status.error.is_some(), "{status:?}");
    assert_eq!(daemon.mesh.borrow().workloads().count(), 50, "the last state stays in force");
    controller.stats("the loss is noticed", |s| s.clients == 0).await;
    controller.apply(vec![
        put("w7", [10, 0, 1, 7]),
        put("new", [10, 0, 1, 8]),
        Change::RemoveWorkload(uid("w1")),
        Change::RemoveWorkload(uid("w2")),
    ]);
    let before = daemon.changes.load(Ordering::Relaxed);
    road.traffic.send_replace(Traffic::Flows);
    daemon.until("the difference", |m| m.workload(&uid("new")).is_some()).await;
    controller.stats("acknowledged", |s| s.acks == 4).await;
    let stats = controller.publisher.stats();
    assert_eq!((stats.sent, stats.removed), (52, 2), "two changed, two gone");
    assert_eq!(daemon.changes.load(Ordering::Relaxed) - before, 4);
    let mesh = daemon.mesh.borrow().clone();
    assert!(mesh.workload(&uid("w1")).is_none() && mesh.workload(&uid("w2")).is_none());
    assert_eq!(mesh.workloads().count(), 49);
}

#[tokio::test]
async fn a_restarted_controller_with_the_same_content_sends_nothing_again() {
    let root = Root::new();
    let content = || -> Vec<Change> {
        let workloads = (1..=20).map(|n| put(&format!("w{n}"), [10, 0, 0, n]));
        workloads.chain([policy("p", Action::Allow)]).collect()
    };
    let controller = Controller::start(&root, content()).await;
    let address = controller.address;
    let mut daemon = Daemon::start(controller.connection(&root, "node-a"));
    daemon.status("sync", |s| s.connected && s.synced).await;
    controller.stats("acknowledged", |s| s.acks == 2).await;
    let before = daemon.changes.load(Ordering::Relaxed);
    controller.stop().await;
    daemon.status("the controller is away", |s| !s.connected).await;

    // It comes back having read one more object, in another order.
    let changes = content().into_iter().rev().chain([put("late", [10, 0, 1, 1])]).collect();
    let controller = Controller::start_at(address, &root, changes).await;
    daemon.until("what is new", |m| m.workload(&uid("late")).is_some()).await;
    controller.stats("acknowledged", |s| s.acks == 2).await;
    let stats = controller.publisher.stats();
    assert_eq!((stats.sent, stats.removed), (1, 0));
    assert_eq!(daemon.changes.load(Ordering::Relaxed) - before, 1);
    controller.stop().await;
}

#[tokio::test]
async fn a_restarted_controller_sends_nothing_before_it_is_ready() {
    let root = Root::new();
    let controller = Controller::start(&root, vec![put("a", [10, 0, 0, 1])]).await;
    let mut raw = Raw::open(&controller.connection(&root, "node-a")).await.expect("a stream");
    raw.subscribe(ResourceType::Address).await;
    let first = soon("an answer", raw.responses.message()).await.expect("no error").expect("a response");
    assert_eq!(first.resources.len(), 1);
    assert_eq!(first.resources[0].aliases, ["/10.0.0.1"]);
    let held = || DeltaDiscoveryRequest {
        type_url: ResourceType::Address.type_url().to_owned(),
        initial_resource_versions: [(first.resources[0].name.clone(), first.resources[0].version.clone())]
            .into(),
        ..Default::default()
    };
    let address = controller.address;
    controller.stop().await;

    // The daemon is back before the objects have been read: had it been answered, "a" would have been taken
    // back.
    let mut controller = Controller::unread(address, &root).await;
    let mut raw = Raw::open(&controller.connection(&root, "node-a")).await.expect("a stream");
    raw.requests.send(held()).await.expect("an open stream");
    controller.stats("the daemon is back", |s| s.clients == 1).await;
    controller.apply(vec![put("a", [10, 0, 0, 1])]);
    let answer = soon("an answer", raw.responses.message()).await.expect("no error").expect("a response");
    assert_eq!((answer.resources.len(), answer.removed_resources.len()), (0, 0));

    // A resource that has been removed is removed from clients that hold it.
    controller.apply(vec![Change::RemoveWorkload(uid("a"))]);
    let mut raw = Raw::open(&controller.connection(&root, "node-a")).await.expect("a stream");
    raw.requests.send(held()).await.expect("an open stream");
    let answer = soon("an answer", raw.responses.message()).await.expect("no error").expect("a response");
    assert_eq!(answer.removed_resources, [uid("a").to_string()]);
    controller.stop().await;
}

#[tokio::test]
async fn a_rejected_resource_stays_and_the_others_are_applied() {
    let root = Root::new();
    let mut controller =
        Controller::start(&root, vec![put("a", [10, 0, 0, 1]), put("b", [10, 0, 0, 2])]).await;
    let road = Road::to(controller.address).await;
    // This daemon does not take workload "a" at 10.0.0.66.
    let mut daemon = Daemon::refusing(connection(road.address, &root, "node-a"), |update| {
        let bad = update.changes.iter().any(|change| match change {
            Change::PutWorkload(w) => w.addresses.contains(&[10, 0, 0, 66].into()),
            _ => false,
        });
        let refused = Rejected { resource: uid("a").to_string(), reason: "addresses: 66".to_owned() };
        if bad { vec![refused] } else { Vec::new() }
    });
    daemon.status("sync", |s| s.synced).await;
    controller.apply(vec![put("a", [10, 0, 0, 66]), put("b", [10, 0, 0, 3])]);
    daemon.until("the good one", |m| m.workload_by_address([10, 0, 0, 3].into()).is_some()).await;
    controller.stats("a NACK", |s| s.nacks == 1).await;
    assert_eq!(controller.publisher.stats().sent, 4);
    controller.apply(vec![put("c", [10, 0, 0, 4])]);
    daemon.until("what comes later", |m| m.workload(&uid("c")).is_some()).await;
    assert_eq!(controller.publisher.stats().sent, 5, "the refused one is not sent again");

    // Who connects again says what it really holds, and is asked to take the refused one again.
    road.traffic.send_replace(Traffic::Closed);
    controller.stats("the loss is noticed", |s| s.clients == 0).await;
    road.traffic.send_replace(Traffic::Flows);
    controller.stats("a NACK again", |s| s.nacks == 2).await;
    assert_eq!(controller.publisher.stats().sent, 6);
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_affect_others() {
    let root = Root::new();
    let changes = (0..200).map(|n| put(&format!("w{n}"), [10, 0, 0, n])).collect();
    let mut controller = Controller::start(&root, changes).await;
    let slow = Raw::open(&controller.connection(&root, "node-slow")).await.expect("a stream");
    slow.subscribe(ResourceType::Address).await;
    controller.stats("its first answer", |s| s.sent == 200).await;

    let mut quick = Daemon::start(controller.connection(&root, "node-a"));
    quick.status("sync", |s| s.synced).await;
    for round in 0..100_u8 {
        controller.apply((0..200).map(|n| put(&format!("w{n}"), [10, 1, round, n])).collect());
        quick.until("a round", |m| m.workload_by_address([10, 1, round, 199].into()).is_some()).await;
    }
    // The quick one was sent every round, the slow one nothing more; when it answers, it gets the last state
    // once.
    assert_eq!(controller.publisher.stats().sent, 200 + 200 + 100 * 200);
    let mut slow = slow;
    let first = soon("its answer", slow.responses.message()).await.expect("no error").expect("a response");
    let answer =
        DeltaDiscoveryRequest { type_url: first.type_url, response_nonce: first.nonce, ..Default::default() };
    slow.requests.send(answer).await.expect("an open stream");
    let last = soon("the last state", slow.responses.message()).await.expect("no error").expect("a response");
    assert_eq!((last.resources.len(), last.removed_resources.len()), (200, 0));
    assert_eq!(controller.publisher.stats().sent, 200 + 200 + 100 * 200 + 200);
    controller.stop().await;
}

#[tokio::test]
async fn unknown_tokens_are_refused() {
    let root = Root::new();
    let controller = Controller::start(&root, vec![put("a", [10, 0, 0, 1])]).await;
    let stranger = Connection { token: "guessed".to_owned(), ..controller.connection(&root, "node-a") };
    let refused = Raw::open(&stranger).await.err().expect("a refusal");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut daemon = Daemon::start(stranger.clone());
    let status = daemon.status("the refusal is in the status", |s| s.error.is_some()).await;
    assert_eq!(status.error.as_deref(), Some("Unauthenticated: the token is not valid"));
    assert!(!status.connected && !status.synced);

    let identity = "spiffe://cluster.local/ns/node-a/sa/default".parse().expect("an identity");
    let error = certificate(&stranger, "csr", &identity).await.expect_err("a refusal");
    assert_eq!(code(&error), Some(Code::Unauthenticated));
    let stats = controller.publisher.stats();
    assert_eq!((stats.sent, stats.clients), (0, 0));
    controller.stop().await;
}

#[tokio::test]
async fn a_controller_with_another_root_or_name_is_refused() {
    let (root, other) = (Root::new(), Root::new());
    let controller = Controller::start(&root, vec![put("a", [10, 0, 0, 1])]).await;
    let good = controller.connection(&root, "node-a");
    let rows = [
        ("another root", Connection { root_pem: other.pem(), ..good.clone() }, "invalid peer certificate"),
        ("another name", Connection { server_name: "other".into(), ..good.clone() }, "not valid for name"),
    ];
    for (name, connection, reason) in rows {
        let mut daemon = Daemon::start(connection);
        let status = daemon.status(name, |s| s.error.is_some()).await;
        let error = status.error.expect("an error");
        assert!(error.contains(reason), "{name}: {error}");
    }
    assert_eq!(controller.publisher.stats().clients, 0);
    controller.stop().await;
}

#[tokio::test]
async fn settings_that_can_never_work_are_an_error_at_once() {
    let root = Root::new();
    let good = connection("127.0.0.1:1".parse().expect("an address"), &root, "node-a");
    let rows = [
        ("failed to use controller endpoint", Connection { endpoint: "not a url".into(), ..good.clone() }),
        ("failed to read root certificates", Connection { root_pem: "nothing".into(), ..good.clone() }),
        ("failed to use token", Connection { token: "two\nlines".into(), ..good }),
    ];
    for (expected, connection) in rows {
        let (status, _) = tokio::sync::watch::channel(Status::default());
        let error = soon(expected, ambit_xds::client::run(connection, status, |_| Vec::new())).await;
        let error = error.expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[tokio::test]
async fn a_flooding_client_is_bounded_and_the_others_are_served() {
    let root = Root::new();
    let mut controller =
        Controller::start(&root, (0..100).map(|n| put(&format!("w{n}"), [10, 0, 0, n])).collect()).await;
    let mut other = Daemon::start(controller.connection(&root, "node-b"));
    other.status("sync", |s| s.synced).await;
    let base = controller.publisher.stats().sent;

    // Asking again and again without answering brings one response.
    let flood = Raw::open(&controller.connection(&root, "node-a")).await.expect("a stream");
    for _ in 0..20_000 {
        flood.subscribe(ResourceType::Address).await;
    }
    controller.apply(vec![put("during", [10, 0, 1, 1])]);
    other.until("a change during the flood", |m| m.workload(&uid("during")).is_some()).await;
    controller.stats("its answer", |s| s.sent > base + 1).await;
    assert!(controller.publisher.stats().sent <= base + 1 + 101);

    // Types without end are refused.
    let mut types = Raw::open(&controller.connection(&root, "node-a")).await.expect("a stream");
    for n in 0..17 {
        let request = DeltaDiscoveryRequest { type_url: format!("type/{n}"), ..Default::default() };
        types.requests.send(request).await.expect("an open stream");
    }
    let end = soon("the end", async {
        loop {
            match types.responses.message().await {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(status) => break Some(status.code()),
            }
        }
    });
    assert!(matches!(end.await, None | Some(Code::ResourceExhausted)));

    // So are streams without end: the flood above is one of eight.
    let shared = channel(&controller.connection(&root, "node-a")).await;
    let mut streams = Vec::new();
    let refused = soon("the refusal", async {
        loop {
            match Raw::open_on(shared.clone(), "token-of-node-a").await {
                Ok(stream) => streams.push(stream),
                Err(status) => break status,
            }
            assert!(streams.len() < 9, "no bound");
        }
    });
    assert_eq!(refused.await.code(), Code::ResourceExhausted);
    drop((streams, flood, types));
    controller.stats("all are gone but one", |s| s.clients == 1).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_controller_that_vanishes_is_detected() {
    let root = Root::new();
    let controller = Controller::start(&root, vec![put("a", [10, 0, 0, 1])]).await;
    let road = Road::to(controller.address).await;
    let mut daemon = Daemon::start(connection(road.address, &root, "node-a"));
    daemon.status("sync", |s| s.connected && s.synced).await;
    road.traffic.send_replace(Traffic::Vanishes);
    let status = daemon.status("the silence is noticed", |s| !s.connected).await;
    assert!(status.synced, "what is known stays in force");
    assert_eq!(daemon.mesh.borrow().workloads().count(), 1);
    road.traffic.send_replace(Traffic::Closed);
    road.traffic.send_replace(Traffic::Flows);
    daemon.status("it is found again", |s| s.connected).await;
}

/// What an answer to a request without or with a name (`ImpersonatedIdentity`) says.
async fn asked(
    controller: &Controller,
    root: &Root,
    token: &str,
    named: Option<Kind>,
) -> Result<String, Code> {
    let connection = Connection { token: token.to_owned(), ..controller.connection(root, "unused") };
    let metadata = named.map(|kind| Struct {
        fields: [("ImpersonatedIdentity".to_owned(), Value { kind: Some(kind) })].into(),
    });
    let body = IstioCertificateRequest { csr: "csr".to_owned(), validity_duration: 90, metadata };
    let mut request = Request::new(body);
    let bearer = format!("Bearer {token}").parse().expect("a header");
    request.metadata_mut().insert("authorization", bearer);
    let mut client = IstioCertificateServiceClient::new(channel(&connection).await);
    let answer = soon("an answer", client.create_certificate(request)).await;
    answer.map(|answer| answer.into_inner().cert_chain[0].clone()).map_err(|status| status.code())
}

#[tokio::test]
async fn a_request_that_names_no_identity_gets_the_tokens_own() {
    let root = Root::new();
    let controller = Controller::start(&root, Vec::new()).await;
    let text =
        |account: &str| Some(Kind::StringValue(format!("spiffe://cluster.local/ns/node-a/sa/{account}")));
    let gets = |account: &str| Ok(format!("csr for spiffe://cluster.local/ns/node-a/sa/{account}, 90 s"));
    let empty = Some(Kind::StringValue(String::new()));
    let rows = [
        ("a daemon names a workload", "token-of-node-a", text("web"), gets("web")),
        ("a daemon names none", "token-of-node-a", None, gets("ztunnel")),
        ("a daemon names the empty one", "token-of-node-a", empty.clone(), gets("ztunnel")),
        ("a daemon without an identity names none", "token-of-node-b", None, Err(Code::InvalidArgument)),
        (
            "a daemon names no text",
            "token-of-node-a",
            Some(Kind::BoolValue(true)),
            Err(Code::InvalidArgument),
        ),
        (
            "a daemon names nonsense",
            "token-of-node-a",
            Some(Kind::StringValue("web".to_owned())),
            Err(Code::InvalidArgument),
        ),
        ("a workload names none", "workload-of-node-a", None, gets("own")),
        ("a workload names the empty one", "workload-of-node-a", empty, gets("own")),
        ("a workload names itself", "workload-of-node-a", text("own"), gets("own")),
        ("a workload names another", "workload-of-node-a", text("web"), Err(Code::PermissionDenied)),
        ("an unknown token names none", "nobody", None, Err(Code::Unauthenticated)),
    ];
    for (name, token, named, expected) in rows {
        assert_eq!(asked(&controller, &root, token, named).await, expected, "{name}");
    }
    controller.stop().await;
}

async fn certificate(
    connection: &Connection,
    csr: &str,
    identity: &Identity,
) -> Result<Vec<String>, ambit_xds::Error> {
    let client = ca::Client::new(connection.clone()).expect("usable settings");
    soon("a certificate", client.create_certificate(csr, identity, Duration::from_secs(90))).await
}

fn code(error: &ambit_xds::Error) -> Option<Code> {
    match error {
        ambit_xds::Error::CreateCertificate { source, .. } => Some(source.code()),
        _ => None,
    }
}

#[tokio::test]
async fn certificates_are_signed_or_refused_with_the_right_code() {
    let root = Root::new();
    let controller = Controller::start(&root, Vec::new()).await;
    let connection = controller.connection(&root, "node-a");
    let own: Identity = "spiffe://cluster.local/ns/node-a/sa/default".parse().expect("an identity");
    let foreign: Identity = "spiffe://cluster.local/ns/node-b/sa/default".parse().expect("an identity");

    let chain = certificate(&connection, "csr", &own).await.expect("a certificate");
    assert_eq!(chain, ["csr for spiffe://cluster.local/ns/node-a/sa/default, 90 s", "root"]);

    let rows = [
        ("an identity of another node", "csr", &foreign, Code::PermissionDenied),
        ("a bad request", "bad", &own, Code::InvalidArgument),
        ("a CA that is not ready", "later", &own, Code::Unavailable),
    ];
    for (name, csr, identity, expected) in rows {
        let error = certificate(&connection, csr, identity).await.expect_err(name);
        assert_eq!(code(&error), Some(expected), "{name}: {error}");
        assert_eq!(error.to_string(), format!("failed to create certificate for {identity}"));
    }
    controller.stop().await;

    let error = certificate(&connection, "csr", &own).await.expect_err("no server");
    assert_eq!(code(&error), Some(Code::Unavailable));
}

#[tokio::test]
async fn open_streams_do_not_prevent_a_stop() {
    let root = Root::new();
    let controller = Controller::start(&root, vec![policy("p", Action::Deny)]).await;
    let mut daemon = Daemon::start(controller.connection(&root, "node-a"));
    daemon.status("sync", |s| s.connected && s.synced).await;
    let idle = channel(&controller.connection(&root, "node-b")).await;
    controller.stats("acknowledged", |s| s.acks == 2).await;
    controller.stop().await;
    let status = daemon.status("the end is in the status", |s| !s.connected).await;
    assert_eq!(status.error.as_deref(), Some("Unavailable: the controller is stopping"));
    assert!(status.synced);
    let key = PolicyKey { namespace: "shop".into(), name: "p".into() };
    assert!(daemon.mesh.borrow().policy(&key).is_some(), "the last state stays in force");
    drop(idle);
}

#[tokio::test]
async fn streams_end_at_their_age_and_daemons_come_back_with_what_they_hold() {
    let root = Root::new();
    let address = "127.0.0.1:0".parse().expect("an address");
    let mut controller = Controller::lasting(address, &root, Duration::from_millis(400)).await;
    controller.apply(vec![put("web", [10, 0, 0, 1])]);
    let mut daemon = Daemon::start(controller.connection(&root, "one"));
    daemon.until("the workload is there", |mesh| mesh.workload(&uid("web")).is_some()).await;
    let status = daemon.status("three streams have ended", |status| status.lost >= 3).await;
    assert_eq!(status.error.as_deref(), Some("the controller ended the stream"), "without an error");
    controller.apply(vec![put("cart", [10, 0, 0, 2])]);
    daemon.until("changes still arrive", |mesh| mesh.workload(&uid("cart")).is_some()).await;
    assert_eq!(daemon.changes.load(Ordering::Relaxed), 2, "nothing was sent twice");
    controller.stop().await;
}

/// More daemons than may claim at the same time, of a mesh whose claims are large.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_claims_are_received_a_few_at_a_time() {
    const WORKLOADS: u16 = 3_000;
    const DAEMONS: u64 = 7;
    const TURNS: u64 = 4;
    let root = Root::new();
    let all =
        || (0..WORKLOADS).map(|n| put(&format!("pod-{n}"), [10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]]));
    let controller = Controller::start(&root, all().collect()).await;
    let address = controller.address;
    let mut daemons: Vec<_> =
        (0..DAEMONS).map(|n| Daemon::start(controller.connection(&root, &format!("node-{n}")))).collect();
    for daemon in &mut daemons {
        daemon.until("all workloads", |mesh| mesh.workloads().count() == usize::from(WORKLOADS)).await;
    }
    controller.stop().await;
    // Until it has read its objects, claims cannot be answered: a few are held, the others wait.
    let mut controller = Controller::unread(address, &root).await;
    controller
        .stats("all but a few wait", |stats| stats.clients == DAEMONS && stats.waiting == DAEMONS - TURNS)
        .await;
    controller.apply(all().collect());
    for daemon in &mut daemons {
        daemon.status("synchronized again", |status| status.connected).await;
    }
    controller
        .stats("no request waits for its turn", |stats| stats.waiting == 0 && stats.acks >= 2 * DAEMONS)
        .await;
    let stats = controller.publisher.stats();
    assert_eq!((stats.sent, stats.removed, stats.refused), (0, 0, 0), "they hold it all");
    controller.stop().await;
}

/// With an RSA key a signature takes milliseconds; here it takes until the test lets it.
#[tokio::test(flavor = "current_thread")]
async fn a_signature_that_takes_long_delays_nothing_else() {
    let root = Root::new();
    let mut controller = Controller::start(&root, vec![put("web", [10, 0, 0, 1])]).await;
    let mut daemon = Daemon::start(controller.connection(&root, "one"));
    daemon.until("the workload is there", |mesh| mesh.workload(&uid("web")).is_some()).await;
    let (release, released) = std::sync::mpsc::channel();
    *support::RELEASED.lock() = Some(released);
    let client = ca::Client::new(controller.connection(&root, "one")).expect("a client");
    let identity: Identity = "spiffe://cluster.local/ns/one/sa/default".parse().expect("an identity");
    let asked =
        tokio::spawn(async move { client.create_certificate("slow", &identity, Duration::ZERO).await });
    for (n, name) in ["cart", "db", "cache"].into_iter().enumerate() {
        controller.apply(vec![put(name, [10, 0, 0, u8::try_from(n).expect("few") + 2])]);
        daemon.until("changes arrive meanwhile", |mesh| mesh.workload(&uid(name)).is_some()).await;
        // The request has reached the signer by the last of them at the latest, or is on its way.
        tokio::task::yield_now().await;
    }
    assert!(!asked.is_finished(), "it waits for the signer");
    release.send(()).expect("the signer waits");
    soon("the certificate", asked).await.expect("no panic").expect("a certificate");
    controller.stop().await;
}
