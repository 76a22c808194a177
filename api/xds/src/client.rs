//! The daemon's side: [`run`] keeps the caller's mesh equal to the controller's, across reconnects.

mod connection;
mod interest;
mod rejected;
mod state;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

use ambit_core::chain;
use ambit_core::mesh::Change;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

pub use connection::{Connection, Credentials};
pub use interest::Interest;
pub use rejected::Rejected;

use crate::Error;
use crate::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::resource::ResourceType;
use state::State;

/// The first response has all resources of a mesh: some hundred thousand workloads fit.
const MAX_RESPONSE: usize = 256 << 20;
/// The deadline of connecting and opening the stream.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(15);

/// The changes of one response.
#[derive(Debug)]
pub struct Update {
    /// To be applied together.
    pub changes: Vec<Change>,
    /// Whether every type has had its first full response: the mesh is complete.
    pub synced: bool,
}

/// The state of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether there is a stream on which the controller has responded.
    pub connected: bool,
    /// Whether every type has had its first full response, on this stream or an earlier one.
    pub synced: bool,
    /// Why the last connection failed or ended.
    pub error: Option<String>,
    /// When the controller last sent something.
    pub updated: Option<SystemTime>,
    /// The resources in force, by the type's short name.
    pub types: BTreeMap<&'static str, HeldType>,
    /// Responses that were accepted as a whole.
    pub acknowledged: u64,
    /// Responses of which a resource was rejected.
    pub refused: u64,
    /// Resources that were rejected.
    pub rejected: u64,
    /// Connections that failed or ended.
    pub lost: u64,
}

/// The resources of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldType {
    /// The number of resources in force.
    pub resources: usize,
    /// The nonce of the last response that was answered.
    pub nonce: String,
}

/// Keeps the caller's mesh up to date, forever: `on_update` gets the changes, and returns the resources it
/// rejects.
///
/// While the controller is unreachable, all resources stay in force. On a new stream, the controller learns
/// which versions are held and sends the difference. A resource that cannot be decoded, or that `on_update`
/// rejects, is reported to the controller, and its last version stays in force. Returns only if the first
/// `credentials` can never work.
pub async fn run(
    credentials: impl Credentials,
    status: watch::Sender<Status>,
    on_update: impl FnMut(Update) -> Vec<Rejected>,
) -> Result<Infallible, Error> {
    run_for(Interest::Node, credentials, status, on_update).await
}

/// Like [`run`], with what a client wants beside what all want.
pub async fn run_for(
    interest: Interest,
    credentials: impl Credentials,
    status: watch::Sender<Status>,
    mut on_update: impl FnMut(Update) -> Vec<Rejected>,
) -> Result<Infallible, Error> {
    let mut state = State::new(interest);
    let mut retry = FIRST_RETRY;
    let mut first = true;
    loop {
        let began = Instant::now();
        let ended = match usable(&credentials) {
            Ok((connection, endpoint)) => {
                converse(&connection, &endpoint, &status, &mut state, &mut on_update).await
            }
            // Settings that are wrong at the first attempt stay wrong. A file may appear later.
            Err(error) if first && !matches!(error, Error::Credentials { .. }) => return Err(error),
            Err(error) => End::Failed(chain(&error)),
        };
        first = false;
        let reason = match ended {
            End::Ended => {
                tracing::info!("xDS stream ended by the controller: connecting again");
                "the controller ended the stream".to_owned()
            }
            End::Failed(reason) => {
                tracing::warn!(%reason, "xDS connection lost");
                reason
            }
        };
        status.send_modify(|s| {
            s.connected = false;
            s.error = Some(reason);
            s.lost += 1;
        });
        if began.elapsed() > LAST_RETRY {
            retry = FIRST_RETRY;
        }
        tokio::time::sleep(retry.mul_f64(rand::random_range(0.5..1.0))).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

/// The current connection settings, checked.
fn usable(credentials: &impl Credentials) -> Result<(Connection, tonic::transport::Endpoint), Error> {
    let connection = credentials.connection()?;
    let endpoint = connection.endpoint()?;
    connection.check_token()?;
    Ok((connection, endpoint))
}

/// Why a stream ended.
enum End {
    /// The controller ended it without an error: it does at a maximum age, to spread its clients.
    Ended,
    Failed(String),
}

/// Runs one stream, from connecting to its end.
async fn converse(
    connection: &Connection,
    endpoint: &tonic::transport::Endpoint,
    status: &watch::Sender<Status>,
    state: &mut State,
    on_update: &mut impl FnMut(Update) -> Vec<Rejected>,
) -> End {
    let (requests, receiver) = mpsc::channel(ResourceType::ALL.len() * 2);
    for request in state.subscribe_all(&connection.node) {
        // A new channel has room.
        let _ = requests.try_send(request);
    }
    let open = async {
        let channel = endpoint.connect().await.map_err(|error| chain(&error))?;
        let mut request = Request::new(ReceiverStream::new(receiver));
        connection.authorize(request.metadata_mut()).map_err(|error| error.to_string())?;
        let mut calls =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
        let response = calls.delta_aggregated_resources(request).await.map_err(|status| explain(&status))?;
        Ok::<_, String>(response.into_inner())
    };
    let mut responses = match tokio::time::timeout(CONNECT_DEADLINE, open).await {
        Ok(Ok(responses)) => responses,
        Ok(Err(reason)) => return End::Failed(reason),
        Err(_) => return End::Failed("connecting took too long".to_owned()),
    };
    loop {
        let response = match responses.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return End::Ended,
            Err(status) => return End::Failed(explain(&status)),
        };
        let Some(mut received) = state.receive(response) else { continue };
        let changes = std::mem::take(&mut received.changes);
        let rejected = on_update(Update { changes, synced: state.synced() });
        for Rejected { resource, reason } in received.rejected.iter().chain(&rejected) {
            tracing::warn!(resource, reason, "resource rejected; its last version stays in force");
        }
        let problems = received.rejected.len() + rejected.len();
        let kind = received.kind();
        let answer = state.answer(received, &rejected);
        let held = HeldType { resources: state.held(kind), nonce: answer.response_nonce.clone() };
        status.send_modify(|s| {
            s.connected = true;
            s.synced = state.synced();
            s.error = None;
            s.updated = Some(SystemTime::now());
            s.types.insert(kind.name(), held);
            *(if problems == 0 { &mut s.acknowledged } else { &mut s.refused }) += 1;
            s.rejected += problems as u64;
        });
        let more = state.resubscribe(&connection.node);
        for request in [answer].into_iter().chain(more) {
            if requests.send(request).await.is_err() {
                return End::Failed("the stream to the controller ended".to_owned());
            }
        }
    }
}

fn explain(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
