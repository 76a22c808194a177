//! Connections without identity that the kernel delivers without ztunnel: [`check`].

use std::net::SocketAddr;

use ambit_core::Denial;
use ambit_core::mesh::Mesh;
use ambit_core::model::WorkloadUid;
use ambit_core::policy::{Request, authorize};

/// Whether a connection without identity may reach a workload.
pub(super) fn check(
    mesh: &Mesh,
    destination: &WorkloadUid,
    client: SocketAddr,
    server: SocketAddr,
) -> Result<(), Denial> {
    let peer = Request { identity: None, source: client.ip(), destination: server };
    authorize(mesh, destination, &peer).outcome.map(drop)
}
