//! The parts of a proxy that all its connections share: [`Proxy`].

use std::sync::Arc;
use std::time::Duration;

use ambit_core::outlier;
use ambit_daemon_kit::drain::Drain;
use ambit_hbone::server::{self, Server};

use crate::connections::Connections;
use crate::endpoints::Endpoints;
use crate::metrics::HANDSHAKE;
use crate::shares::Shares;
use crate::state::MeshState;

/// How many endpoints of a service are tried for one connection.
pub const MAX_ATTEMPTS: u32 = 3;

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Making a connection: deciding, every endpoint tried, the application's answer.
    pub connect: Duration,
}

impl Timeouts {
    /// How long one endpoint may take, so that others can be tried in time.
    pub fn endpoint(self) -> Duration {
        self.connect / MAX_ATTEMPTS
    }
}

/// What all connections of a proxy share.
#[derive(Debug)]
pub struct Proxy {
    /// The mesh as decisions see it.
    pub mesh: Arc<MeshState>,
    /// Which endpoints are ejected.
    pub endpoints: Endpoints,
    /// The open connections.
    pub connections: Arc<Connections>,
    /// Terminates HBONE connections of peers.
    pub server: Server,
    /// Ends connections when the process is to end.
    pub drain: Drain,
    /// How many descriptors each workload's connections may hold.
    pub shares: Shares,
    /// How long things may take.
    pub timeouts: Timeouts,
}

impl Proxy {
    /// Without a mesh yet. `ejection`: none switches outlier detection off.
    pub fn new(timeouts: Timeouts, ejection: Option<outlier::Settings>) -> Self {
        Self {
            mesh: Arc::default(),
            endpoints: Endpoints::new(ejection),
            connections: Arc::default(),
            server: Server::observed(server::Settings::default(), |took| HANDSHAKE.observe("server", took)),
            drain: Drain::new(),
            shares: Shares::of_descriptors(),
            timeouts,
        }
    }
}
