//! A daemon's end: [`run`] keeps the caller's mesh equal to the controller's, through whatever happens to the
//! connection.

mod connection;
mod state;
#[cfg(test)]
mod state_tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

use ambit_core::chain;
use ambit_core::mesh::Change;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

pub use connection::{Connection, Credentials};

use crate::Error;
use crate::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::resource::ResourceType;
use state::State;

/// The first answer holds all of a mesh: some hundred thousand workloads fit.
const MAX_RESPONSE: usize = 256 << 20;
/// How long connecting, and opening the stream, may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(15);

/// What one answer of the controller changes.
#[derive(Debug)]
pub struct Update {
    /// To be applied to the mesh together.
    pub changes: Vec<Change>,
    /// Every type has had its first full answer: the mesh is complete.
    pub synced: bool,
}

/// A resource that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its name on the wire: a workload's uid, `<namespace>/<hostname>`, `<namespace>/<policy>`.
    pub resource: String,
    /// The field and what is wrong with it.
    pub reason: String,
}

/// How the client is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// There is a stream on which the controller has answered.
    pub connected: bool,
    /// Every type has had its first full answer, now or before the connection was lost.
    pub synced: bool,
    /// Why the last connection failed or ended.
    pub error: Option<String>,
    /// When the controller last sent something.
    pub updated: Option<SystemTime>,
    /// What is held of each type, by the type's short name.
    pub types: BTreeMap<&'static str, HeldType>,
    /// Responses that were taken.
    pub acknowledged: u64,
    /// Responses of which something was refused.
    pub refused: u64,
    /// Resources that were refused.
    pub rejected: u64,
    /// Connections that failed or ended.
    pub lost: u64,
}

/// What is held of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldType {
    pub resources: usize,
    /// Of the response that was answered last.
    pub nonce: String,
}

/// Keeps the caller's mesh up to date, for ever: `on_update` gets what changes, and says what it refuses of
/// it.
///
/// While the controller is away nothing is taken back. When it returns, it is told what is held, and sends
/// the rest. A resource that cannot be decoded, or that `on_update` refuses, is reported to the controller
/// and stays as it last was. Returns only if what `credentials` gave at first can never work.
pub async fn run(
    credentials: impl Credentials,
    status: watch::Sender<Status>,
    mut on_update: impl FnMut(Update) -> Vec<Rejected>,
) -> Result<Infallible, Error> {
    let mut state = State::default();
    let mut retry = FIRST_RETRY;
    let mut first = true;
    loop {
        let began = Instant::now();
        let ended = match usable(&credentials) {
            Ok((connection, endpoint)) => {
                converse(&connection, &endpoint, &status, &mut state, &mut on_update).await
            }
            // What is wrong with it from the beginning, and is no file that may yet come, stays wrong.
            Err(error) if first && !matches!(error, Error::Credentials { .. }) => return Err(error),
            Err(error) => chain(&error),
        };
        first = false;
        tracing::warn!(reason = %ended, "xDS connection lost");
        status.send_modify(|s| {
            s.connected = false;
            s.error = Some(ended);
            s.lost += 1;
        });
        if began.elapsed() > LAST_RETRY {
            retry = FIRST_RETRY;
        }
        tokio::time::sleep(retry.mul_f64(rand::random_range(0.5..1.0))).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

/// The way to the controller as it is now.
fn usable(credentials: &impl Credentials) -> Result<(Connection, tonic::transport::Endpoint), Error> {
    let connection = credentials.connection()?;
    let endpoint = connection.endpoint()?;
    connection.check_token()?;
    Ok((connection, endpoint))
}

/// One stream, from connecting to its end, and why it ended.
async fn converse(
    connection: &Connection,
    endpoint: &tonic::transport::Endpoint,
    status: &watch::Sender<Status>,
    state: &mut State,
    on_update: &mut impl FnMut(Update) -> Vec<Rejected>,
) -> String {
    let (requests, receiver) = mpsc::channel(ResourceType::ALL.len() * 2);
    for kind in ResourceType::ALL {
        // There is room: the channel is new.
        let _ = requests.try_send(state.hello(kind, &connection.node));
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
        Ok(Err(reason)) => return reason,
        Err(_) => return "connecting took too long".to_owned(),
    };
    loop {
        let response = match responses.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return "the controller ended the stream".to_owned(),
            Err(status) => return explain(&status),
        };
        let Some(mut received) = state.receive(response) else { continue };
        let changes = std::mem::take(&mut received.changes);
        let rejected = on_update(Update { changes, synced: state.synced() });
        for Rejected { resource, reason } in received.rejected.iter().chain(&rejected) {
            tracing::warn!(resource, reason, "refused a resource; what was known of it stays");
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
        if requests.send(answer).await.is_err() {
            return "the stream to the controller ended".to_owned();
        }
    }
}

fn explain(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
