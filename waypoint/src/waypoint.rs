//! What all workers share: [`Waypoint`].

use std::sync::Arc;
use std::time::Duration;

use ambit_core::mesh::Mesh;
use ambit_core::model::{ServiceKey, Workload};
use ambit_core::route::Table;
use ambit_proxy::proxy::Proxy;
use ambit_proxy::workload::{HostWorkload, Workloads};

/// The parts that every worker has.
#[derive(Debug)]
pub struct Waypoint {
    /// Mesh, endpoints, connections, limits, drain.
    pub proxy: Arc<Proxy>,
    /// The waypoint's own workload, whose identity it has.
    pub served: Arc<HostWorkload>,
    /// The same as a set, for dialling.
    pub workloads: Arc<Workloads<HostWorkload>>,
    /// How long things may take and how large they may be.
    pub limits: Limits,
}

/// Limits of client connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a client may stay silent until its connection, of no declared protocol, is taken for TCP.
    pub sniff: Duration,
    /// How long the head of a request may take once its first byte has come.
    pub head: Duration,
    /// How long an HTTP connection may have no request.
    pub idle: Duration,
    /// The largest head of a request or response, in bytes.
    pub head_bytes: u32,
    /// Requests at a time on one HTTP/2 connection.
    pub streams: u32,
    /// How long a drain waits for clients to send the last request on idle connections.
    pub drain_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sniff: Duration::from_millis(100),
            head: Duration::from_secs(10),
            idle: Duration::from_hours(1),
            head_bytes: 64 << 10,
            streams: 100,
            drain_grace: Duration::from_secs(5),
        }
    }
}

impl Waypoint {
    /// A waypoint that serves as this workload.
    pub fn new(proxy: Arc<Proxy>, served: HostWorkload, limits: Limits) -> Self {
        let (served, workloads) = (Arc::new(served), Arc::new(Workloads::default()));
        workloads.insert(served.clone());
        Self { proxy, served, workloads, limits }
    }

    /// The waypoint's own workload as the mesh has it.
    pub(crate) fn own<'a>(&self, mesh: &'a Mesh) -> Option<&'a Arc<Workload>> {
        mesh.workload(&self.served.workload.uid)
    }
}

/// The routes for requests to a service's port by clients of a namespace; `None`: there are none, and every
/// request goes to the service itself.
pub(crate) fn routes<'a>(mesh: &'a Mesh, service: &ServiceKey, port: u16, client: &str) -> Option<&'a Table> {
    mesh.routes(service)?.table(port, client)
}
