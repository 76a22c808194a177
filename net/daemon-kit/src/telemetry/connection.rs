//! The report of a connection: Istio's TCP metrics while it lives and one access log record when it ends.
//!
//! [`opened`] when bytes may flow, then [`OpenConnection::progress`] as often as wanted and
//! [`OpenConnection::closed`] once; [`failed`] for a connection that never came to be. Connections that the
//! kernel carries are reported from its records, with [`observed`].

pub mod observed;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

use ambit_core::Reason;
use ambit_core::model::{Identity, PolicyKey, Service, Workload};
use parking_lot::Mutex;

use super::access;
use super::exposition::{Exposition, Family};
use super::instruments::Counters;
use super::labels::{AllSeries, Labels, Series};
use super::recent;

/// The process's counters, like the recorder they live in.
static ALL: LazyLock<AllSeries> = LazyLock::new(|| AllSeries::new(*IDLE.get_or_init(|| HOUR)));

/// How long names are shown that no connection uses.
static IDLE: OnceLock<Duration> = OnceLock::new();
const HOUR: Duration = Duration::from_hours(1);

/// Every ending that is reported, in order or not.
static ENDED: Counters<3> = Counters::new(
    "ambit_connections_ended_total",
    "Connections that ended, were refused or could not be made, by reason.",
    ["reason", "direction", "path"],
);

/// How many are open now.
static OPEN: Open = Open([const { [const { AtomicU64::new(0) }; Path::ALL.len()] }; 2]);
const OPEN_FAMILY: Family =
    Family::gauge("ambit_connections_open", "Connections that are open now, by direction and path.");

/// Which way a connection goes, seen from the workload that this node hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From it: the reporter is the source.
    Outbound,
    /// To it: the reporter is the destination.
    Inbound,
}

impl Direction {
    /// Its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// How the bytes are carried; `path` in logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Plain TCP between two pods of one node, each end checked.
    Direct,
    /// HBONE between the two nodes' daemons.
    Tunnel,
    /// HBONE through a waypoint.
    Waypoint,
    /// Plain TCP that the daemon carries: to an endpoint outside the mesh, or from a client without identity.
    Plaintext,
    /// Plain TCP that the kernel carries, from a client without identity to a pod whose policies let anybody
    /// in.
    Native,
}

impl Path {
    /// Every path.
    pub const ALL: [Self; 5] = [Self::Direct, Self::Tunnel, Self::Waypoint, Self::Plaintext, Self::Native];

    /// Its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Tunnel => "tunnel",
            Self::Waypoint => "waypoint",
            Self::Plaintext => "plaintext",
            Self::Native => "native",
        }
    }
}

/// One end of a connection, as far as it is known.
#[derive(Clone, Debug)]
pub struct End {
    pub address: SocketAddr,
    pub workload: Option<Arc<Workload>>,
    /// Proven by TLS, or by the kernel on the direct path; never what the address suggests.
    pub identity: Option<Identity>,
}

/// Who talks to whom, and how.
#[derive(Clone, Debug)]
pub struct Facts {
    pub direction: Direction,
    pub path: Path,
    /// Whether the bytes leave in mutual TLS on this hop.
    pub mutual_tls: bool,
    pub source: End,
    /// The address is where the bytes go: for a tunnel the peer's HBONE address (`dst.addr`).
    pub destination: End,
    /// The address inside the tunnel (`dst.hbone_addr`).
    pub hbone_address: Option<SocketAddr>,
    pub service: Option<Arc<Service>>,
}

impl Facts {
    /// Whether the ends' identities are proven; they are reported only then. On the direct path there is no
    /// TLS, but the kernel knows each end by its enrolment.
    pub(super) fn proven(&self) -> bool {
        self.mutual_tls || self.path == Path::Direct
    }
}

/// Bytes carried so far, by who sent them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    pub from_client: u64,
    pub from_server: u64,
}

impl Bytes {
    /// What of this came after `earlier`.
    fn since(self, earlier: Self) -> Self {
        Self {
            from_client: self.from_client.saturating_sub(earlier.from_client),
            from_server: self.from_server.saturating_sub(earlier.from_server),
        }
    }
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
    pub reason: Reason,
    pub flag: Flag,
    /// What to tell an operator; none for an orderly end.
    pub error: Option<String>,
    /// The policy that decided, where one did.
    pub policy: Option<PolicyKey>,
}

/// The open ones, by direction and path.
#[derive(Debug)]
struct Open([[AtomicU64; Path::ALL.len()]; 2]);

impl Open {
    fn of(&self, direction: Direction, path: Path) -> &AtomicU64 {
        &self.0[direction as usize][path as usize]
    }

    fn show(&self, all: &mut Exposition) {
        let mut open = all.family(&OPEN_FAMILY);
        for direction in [Direction::Outbound, Direction::Inbound] {
            for path in Path::ALL {
                let count = self.of(direction, path).load(Ordering::Relaxed);
                open.sample(&[("direction", direction.as_str()), ("path", path.as_str())], count);
            }
        }
    }
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
    OPEN.of(facts.direction, facts.path).fetch_add(1, Ordering::Relaxed);
    OpenConnection { facts, since: Instant::now(), series, counted: Mutex::default(), reported: false }
}

/// Reports a connection that was refused or could not be made. `since` is when it was tried.
pub fn failed(facts: &Facts, since: Instant, ending: &Ending) {
    report_failed(facts, since.elapsed(), ending);
}

/// How long metrics keep showing names that no connection used, if none that is open has them. An hour unless
/// said, once, before the first connection is counted.
pub fn forget_series_after(idle: Duration) {
    let known = IDLE.set(idle);
    debug_assert!(known.is_ok(), "connections were counted before");
}

/// Writes the metrics of all connections.
pub fn show(all: &mut Exposition) {
    ALL.show(all);
    OPEN.show(all);
    ENDED.show(all);
}

fn report_failed(facts: &Facts, tried: Duration, ending: &Ending) {
    ALL.of(Labels::new(facts, ending.flag)).failed();
    report_end(facts, Bytes::default(), tried, ending);
}

/// What every ending leaves, once.
fn report_end(facts: &Facts, bytes: Bytes, duration: Duration, ending: &Ending) {
    ENDED.count([ending.reason.name(), facts.direction.as_str(), facts.path.as_str()]);
    access::write(facts, bytes, duration, ending);
    recent::remember(facts, bytes, duration, ending);
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
        let new = total.since(*counted);
        self.series.carried(new);
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
        OPEN.of(self.facts.direction, self.facts.path).fetch_sub(1, Ordering::Relaxed);
        match ending.flag {
            Flag::None => self.series.closed(),
            flag => ALL.of(Labels::new(&self.facts, flag)).closed(),
        }
        let counted = *self.counted.get_mut();
        report_end(&self.facts, counted, self.since.elapsed(), ending);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if !self.reported {
            self.report(&Ending {
                reason: Reason::Abandoned,
                flag: Flag::None,
                error: Some("its task ended before the connection did".to_owned()),
                policy: None,
            });
        }
    }
}
