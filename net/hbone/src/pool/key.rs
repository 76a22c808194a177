//! Which connections may carry a tunnel: [`Key`].

use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::model::{Identity, WorkloadUid};

/// Which connections may carry a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The workload whose namespace the sockets live in.
    pub source: WorkloadUid,
    /// The client's identity.
    pub identity: Identity,
    /// The identities that the server may have.
    pub peers: Arc<[Identity]>,
    /// The address that the server listens on.
    pub address: SocketAddr,
}
