//! The report of a connection: Istio's TCP metrics while it lives and one access log record when it ends.
//!
//! [`opened`] when bytes may flow, then [`OpenConnection::progress`] as often as wanted and
//! [`OpenConnection::closed`] once; [`failed`] for a connection that never came to be.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use ambit_core::model::{Identity, PolicyKey, Service, Workload};
use parking_lot::Mutex;

use super::access;
use super::labels::{self, AllSeries, Labels, Series};

/// The process's counters, like the recorder they live in.
static ALL: LazyLock<AllSeries> = LazyLock::new(AllSeries::new);

/// Which way a connection goes, seen from the workload that this node hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From it: the reporter is the source.
    Outbound,
    /// To it: the reporter is the destination.
    Inbound,
}

/// How the bytes are carried; `path` in the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Plain TCP between two pods of one node, each end checked.
    Direct,
    /// HBONE between the two nodes' daemons.
    Tunnel,
    /// HBONE through a waypoint.
    Waypoint,
    /// Plain TCP: to an endpoint outside the mesh, or from a client without identity.
    Plaintext,
}

impl Path {
    /// Its name in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Tunnel => "tunnel",
            Self::Waypoint => "waypoint",
            Self::Plaintext => "plaintext",
        }
    }
}

/// One end of a connection, as far as it is known.
#[derive(Clone, Debug)]
pub struct End {
    pub address: SocketAddr,
    pub workload: Option<Arc<Workload>>,
    /// Proven by TLS; never what the address suggests.
    pub identity: Option<Identity>,
}

/// Who talks to whom, and how.
#[derive(Clone, Debug)]
pub struct Facts {
    pub direction: Direction,
    pub path: Path,
    /// Whether the bytes leave in mutual TLS on this hop; identities are reported only then.
    pub mutual_tls: bool,
    pub source: End,
    /// The address is where the bytes go: for a tunnel the peer's HBONE address (`dst.addr`).
    pub destination: End,
    /// The address inside the tunnel (`dst.hbone_addr`).
    pub hbone_address: Option<SocketAddr>,
    pub service: Option<Arc<Service>>,
}

/// Bytes carried so far, by who sent them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    pub from_client: u64,
    pub from_server: u64,
}

/// The `response_flags` label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Flag {
    #[default]
    None,
    /// A policy refused it.
    Denied,
    /// The destination could not be reached.
    ConnectFailed,
    /// TLS with the peer failed.
    TlsFailed,
    /// The HTTP/2 connection with the peer failed.
    TunnelFailed,
    /// There is no certificate for the identity.
    IdentityFailed,
}

impl Flag {
    /// Its text in the label, as Istio's ztunnel writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Denied => "DENY",
            Self::ConnectFailed => "CONNECT",
            Self::TlsFailed => "TLS_FAILURE",
            Self::TunnelFailed => "H2_HANDSHAKE_FAILURE",
            Self::IdentityFailed => "IDENTITY",
        }
    }
}

/// Why it ended, or never began.
#[derive(Clone, Debug)]
pub struct Ending {
    /// The stable name of the reason (`Reason`'s names).
    pub reason: &'static str,
    pub flag: Flag,
    /// What to tell an operator; none for an orderly end.
    pub error: Option<String>,
    /// The policy that decided, where one did.
    pub policy: Option<PolicyKey>,
}

/// An open connection's report. Dropping it reports the end too, as abandoned.
#[derive(Debug)]
#[must_use = "dropping it reports the connection as abandoned"]
pub struct OpenConnection {
    facts: Facts,
    since: Instant,
    series: Arc<Series>,
    /// What the metrics know already.
    counted: Mutex<Bytes>,
    reported: bool,
}

/// Counts the connection as opened.
pub fn opened(facts: Facts) -> OpenConnection {
    let series = ALL.of(Labels::new(&facts, Flag::None));
    series.opened();
    OpenConnection { facts, since: Instant::now(), series, counted: Mutex::default(), reported: false }
}

/// Reports a connection that was refused or could not be made. `since` is when it was tried.
pub fn failed(facts: &Facts, since: Instant, ending: &Ending) {
    ALL.of(Labels::new(facts, ending.flag)).failed();
    access::write(facts, Bytes::default(), since.elapsed(), ending);
}

impl OpenConnection {
    /// Who talks to whom.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// When it was opened.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Counts what was carried since the last call. `total` is since the connection was opened; less than was
    /// counted already counts nothing.
    pub fn progress(&self, total: Bytes) {
        let mut counted = self.counted.lock();
        let new = Bytes {
            from_client: total.from_client.saturating_sub(counted.from_client),
            from_server: total.from_server.saturating_sub(counted.from_server),
        };
        // Istio's metrics are named from the server's side: it sends the response.
        if new.from_server > 0 {
            self.series.sent(new.from_server);
        }
        if new.from_client > 0 {
            self.series.received(new.from_client);
        }
        counted.from_client += new.from_client;
        counted.from_server += new.from_server;
    }

    /// Reports the end.
    pub fn closed(mut self, total: Bytes, ending: &Ending) {
        self.progress(total);
        self.report(ending);
    }

    fn report(&mut self, ending: &Ending) {
        self.reported = true;
        match ending.flag {
            Flag::None => self.series.closed(),
            flag => ALL.of(Labels::new(&self.facts, flag)).closed(),
        }
        let counted = *self.counted.get_mut();
        access::write(&self.facts, counted, self.since.elapsed(), ending);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if !self.reported {
            self.report(&Ending {
                reason: "abandoned",
                flag: Flag::None,
                error: Some("its task ended before the connection did".to_owned()),
                policy: None,
            });
        }
    }
}

pub(crate) fn describe() {
    use metrics::describe_counter;
    describe_counter!(labels::OPENED, "TCP connections opened");
    describe_counter!(labels::CLOSED, "TCP connections closed");
    describe_counter!(labels::FAILED, "TCP connections refused or not made");
    describe_counter!(labels::SENT, "Bytes sent by servers, in response");
    describe_counter!(labels::RECEIVED, "Bytes received from clients, in request");
    describe_counter!(
        labels::UNTOLD,
        "Connections counted without names because there were too many label sets"
    );
}
