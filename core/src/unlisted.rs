//! Connections that no daemon carries and the kernel does not list: older than the enrolment of their pod, or
//! made while something was missing in the kernel. [`may_stay`] says which of them may.

use std::net::SocketAddr;

use crate::denial::Denial;
use crate::mesh::Mesh;
use crate::model::WorkloadUid;
use crate::ownership::{self, Captured};
use crate::policy::{Request, authorize};

/// A connection of a pod, as the pod's end of it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unlisted {
    /// The pod's own address and port.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// Whether the pod accepted it.
    pub inbound: bool,
    /// Whether it may have passed capture while something was missing in the kernel: the pod made it since
    /// its enrolment, and something was put right a moment ago.
    pub suspect: bool,
}

/// Why such a connection may not stay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// Policy denies it: its client has no identity.
    #[error(transparent)]
    Denied(Denial),
    /// It is plaintext to a destination of the mesh, past capture.
    #[error("plaintext to {0}, past capture")]
    PastCapture(SocketAddr),
}

/// Whether the connection may stay open. Enforcement is at the destination: what a pod connected to before
/// its enrolment, or before its peer's, stays as far as its peer allows it.
pub fn may_stay(mesh: &Mesh, pod: &WorkloadUid, connection: &Unlisted) -> Result<(), Ended> {
    let Unlisted { local, remote, inbound, suspect } = *connection;
    if inbound {
        let peer = Request { identity: None, source: remote.ip(), destination: local };
        return authorize(mesh, pod, &peer).outcome.map(drop).map_err(Ended::Denied);
    }
    let excluded = mesh.workload(pod).is_some_and(|pod| pod.excluded_ports.outbound.contains(&remote.port()));
    if suspect && !excluded && is_captured(mesh, pod, remote) {
        return Err(Ended::PastCapture(remote));
    }
    Ok(())
}

/// Whether connections of the pod to this destination are captured.
fn is_captured(mesh: &Mesh, pod: &WorkloadUid, remote: SocketAddr) -> bool {
    match ownership::captured(mesh, remote.ip()) {
        Captured::Whole => true,
        Captured::Parts(parts) => parts.iter().any(|part| {
            let client = mesh.workload(pod).map(|pod| &pod.namespace);
            part.port.is_none_or(|port| port == remote.port())
                && part.namespace.as_ref().is_none_or(|namespace| client == Some(namespace))
        }),
    }
}
