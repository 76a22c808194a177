//! What is known of a connection, as reports say it: [`ConnectionInfo`], and why it ended: [`Ending`].

use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::Reason;
use ambit_core::model::{Identity, PolicyKey, Service, Workload};
use ambit_core::policy::NamedClient;

/// Which way a connection goes, seen from the workload that this proxy serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From it: the reporter is the source.
    Outbound,
    /// To it: the reporter is the destination.
    Inbound,
    /// Through it: the reporter is a waypoint. Whether it is allowed is decided at the destination.
    Through,
}

impl Direction {
    /// Its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Through => "through",
        }
    }
}

/// How the bytes are carried; `path` in logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Plain TCP between two pods of one node; checked by the kernel.
    Direct,
    /// HBONE between the two nodes' daemons.
    Tunnel,
    /// HBONE through a waypoint.
    Waypoint,
    /// Plain TCP that the daemon carries: to an endpoint outside the mesh, or from a client without identity.
    Plaintext,
    /// Plain TCP that the kernel carries, from a client without identity to a pod whose policies permit any
    /// client.
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

/// The source or the destination of a connection, as far as it is known.
#[derive(Clone, Debug)]
pub struct Party {
    /// Its address on the wire.
    pub address: SocketAddr,
    /// The workload that has the address; a name for telemetry, never for decisions.
    pub workload: Option<Arc<Workload>>,
    /// Proven by TLS, or by the kernel on the direct path; never what the address suggests.
    pub identity: Option<Identity>,
}

impl Party {
    /// One of which only the address is known.
    pub fn at(address: SocketAddr) -> Self {
        Self { address, workload: None, identity: None }
    }
}

/// Who talks to whom, and how.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Seen from the reporting proxy.
    pub direction: Direction,
    /// How the bytes are carried.
    pub path: Path,
    /// Whether the bytes leave in mutual TLS on this hop.
    pub mutual_tls: bool,
    /// The client's side.
    pub source: Party,
    /// The server's side. The address is where the bytes go: for a tunnel the peer's HBONE address
    /// (`dst.addr`).
    pub destination: Party,
    /// The address inside the tunnel (`dst.hbone_addr`).
    pub hbone_address: Option<SocketAddr>,
    /// The client that the peer names, which is believed of the destination's own waypoint only.
    pub client: Option<NamedClient>,
    /// The service that the client asked for, where there is no doubt which.
    pub service: Option<Arc<Service>>,
}

impl ConnectionInfo {
    /// Whether the identities are proven; they are reported only then. On the direct path there is no TLS,
    /// but the kernel knows each side by its enrolment.
    pub(super) fn proven(&self) -> bool {
        self.mutual_tls || self.path == Path::Direct
    }
}

/// Bytes carried so far, by who sent them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Sent by the client.
    pub from_client: u64,
    /// Sent by the server.
    pub from_server: u64,
}

impl Bytes {
    /// What of this came after `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            from_client: self.from_client.saturating_sub(earlier.from_client),
            from_server: self.from_server.saturating_sub(earlier.from_server),
        }
    }
}

/// The `response_flags` label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Flag {
    /// It was made, and carried bytes.
    #[default]
    None,
    /// A policy refused it.
    Denied,
    /// No route takes it.
    NoRoute,
    /// Its route's backend is not valid.
    NoBackend,
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
    /// Its text in the label, as Istio's ztunnel writes it, or Envoy what only a waypoint has.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Denied => "DENY",
            Self::NoRoute => "NR",
            Self::NoBackend => "NC",
            Self::ConnectFailed => "CONNECT",
            Self::TlsFailed => "TLS_FAILURE",
            Self::TunnelFailed => "H2_HANDSHAKE_FAILURE",
            Self::IdentityFailed => "IDENTITY",
        }
    }
}

/// Why a connection ended, or was never made.
#[derive(Clone, Debug)]
pub struct Ending {
    /// The cause, by its stable name in logs and metrics.
    pub reason: Reason,
    /// `response_flags` in metrics.
    pub flag: Flag,
    /// What to tell an operator; none for an orderly end.
    pub error: Option<String>,
    /// The policy that decided, where one did.
    pub policy: Option<PolicyKey>,
}
