//! Connections, open ([`ConnectionView`]) and ended ([`EndedView`]).

use ambit_core::model::PolicyKey;
use serde::Serialize;

use crate::report::{Bytes, ConnectionInfo, Ended, Party};

/// A connection as `/connections` shows it.
#[derive(Debug, Serialize)]
pub struct ConnectionView {
    /// In the registry, of those that the proxy carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    /// Of the socket, as `ss -e` shows it, of those that the kernel carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_cookie: Option<u64>,
    direction: &'static str,
    path: &'static str,
    /// The kind of the pods' links under a direct connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<&'static str>,
    mutual_tls: bool,
    source: PartyView,
    destination: PartyView,
    #[serde(skip_serializing_if = "Option::is_none")]
    hbone_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    seconds: f64,
    bytes_from_client: u64,
    bytes_from_server: u64,
}

#[derive(Debug, Serialize)]
struct PartyView {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
}

impl ConnectionView {
    /// A connection that the kernel carries, or of which no more is known.
    pub fn new(connection: &ConnectionInfo, bytes: Bytes, seconds: f64) -> Self {
        Self {
            id: None,
            socket_cookie: None,
            direction: connection.direction.as_str(),
            path: connection.path.as_str(),
            link: None,
            mutual_tls: connection.mutual_tls,
            source: PartyView::new(&connection.source),
            destination: PartyView::new(&connection.destination),
            hbone_address: connection.hbone_address.map(|address| address.to_string()),
            service: connection.service.as_ref().map(|service| service.key.to_string()),
            policy: None,
            seconds,
            bytes_from_client: bytes.from_client,
            bytes_from_server: bytes.from_server,
        }
    }

    /// With its number in the registry and the policy that permitted it.
    #[must_use]
    pub fn registered(self, id: u64, policy: Option<&PolicyKey>) -> Self {
        Self { id: Some(id), policy: policy.map(ToString::to_string), ..self }
    }

    /// With the kind of the links that carry it, if it is direct.
    #[must_use]
    pub fn with_link(self, link: Option<&'static str>) -> Self {
        Self { link, ..self }
    }

    /// With the cookie of its socket, which the kernel carries.
    #[must_use]
    pub fn with_socket(self, socket_cookie: Option<u64>) -> Self {
        Self { socket_cookie, ..self }
    }
}

/// A connection that has ended or failed, as `/connections/recent` shows it.
#[derive(Debug, Serialize)]
pub struct EndedView {
    #[serde(flatten)]
    connection: ConnectionView,
    seconds_ago: f64,
    reason: &'static str,
    /// As `response_flags` in metrics.
    flags: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl EndedView {
    /// As it was reported.
    pub fn new(ended: &Ended) -> Self {
        let policy = ended.ending.policy.as_ref().map(ToString::to_string);
        Self {
            connection: ConnectionView {
                policy,
                ..ConnectionView::new(&ended.connection, ended.bytes, ended.duration.as_secs_f64())
            },
            // Zero if the clock was set back.
            seconds_ago: ended.at.elapsed().unwrap_or_default().as_secs_f64(),
            reason: ended.ending.reason.name(),
            flags: ended.ending.flag.as_str(),
            error: ended.ending.error.clone(),
        }
    }
}

impl PartyView {
    fn new(party: &Party) -> Self {
        Self {
            address: party.address.to_string(),
            workload: party.workload.as_ref().map(|workload| workload.uid.to_string()),
            identity: party.identity.as_ref().map(ToString::to_string),
        }
    }
}
