//! Who talks to whom on a connection that the kernel carries or refused: [`Observation`] →
//! [`ConnectionInfo`].

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ambit_core::mesh::Mesh;
use ambit_core::model::Workload;
use ambit_core::{inbound, outbound};
use ambit_loader::{Flow, Path as KernelPath, Record, WorkloadNumber};
use ambit_proxy::report::{ConnectionInfo, Direction, Party, Path};

use super::names::Names;

/// What the kernel says of a connection.
#[derive(Clone, Debug)]
pub(super) struct Observation {
    pub(super) path: KernelPath,
    pub(super) source: Option<WorkloadNumber>,
    pub(super) destination: Option<WorkloadNumber>,
    /// None where a `connect()` was refused.
    pub(super) client: Option<SocketAddr>,
    pub(super) server: SocketAddr,
    pub(super) asked: Option<SocketAddr>,
}

impl From<&Flow> for Observation {
    fn from(flow: &Flow) -> Self {
        Self {
            path: flow.path,
            source: flow.source,
            destination: Some(flow.destination),
            client: Some(flow.client),
            server: flow.server,
            asked: flow.original_destination,
        }
    }
}

impl From<&Record> for Observation {
    fn from(record: &Record) -> Self {
        Self {
            path: record.path,
            source: record.source,
            destination: record.destination,
            client: record.client,
            server: record.server,
            asked: record.original_destination,
        }
    }
}

impl Observation {
    /// The reports to make: both sides' of a direct connection, since both are on this node; the server's of
    /// one that arrived; the client's of a `connect()` that was refused.
    pub(super) fn reports(&self, mesh: &Mesh, names: &Names) -> Vec<ConnectionInfo> {
        let named = |number: Option<WorkloadNumber>| number.and_then(|number| names.workload(number));
        let by_address = |address: SocketAddr| mesh.workload_by_address(address.ip()).cloned();
        let source = named(self.source).or_else(|| by_address(self.client?));
        let destination = named(self.destination).or_else(|| by_address(self.server));
        let path = self.path();
        let proven = |workload: &Option<Arc<Workload>>| {
            workload.as_ref().filter(|_| path == Path::Direct).map(|workload| workload.identity())
        };
        let client = self.client.unwrap_or_else(|| unbound(source.as_deref(), self.server));
        let service = match self.asked {
            Some(asked) => outbound::service_at(mesh, source.as_deref(), asked),
            None => destination.as_deref().and_then(|d| inbound::service_behind(mesh, d, self.server.port())),
        };
        let info = |direction| ConnectionInfo {
            direction,
            path,
            mutual_tls: false,
            source: Party { address: client, identity: proven(&source), workload: source.clone() },
            destination: Party {
                address: self.server,
                identity: proven(&destination),
                workload: destination.clone(),
            },
            hbone_address: None,
            client: None,
            service: service.cloned(),
        };
        match (self.client, path) {
            (None, _) => vec![info(Direction::Outbound)],
            (Some(_), Path::Direct) => vec![info(Direction::Outbound), info(Direction::Inbound)],
            (Some(_), _) => vec![info(Direction::Inbound)],
        }
    }

    fn path(&self) -> Path {
        match self.path {
            KernelPath::Native => Path::Native,
            KernelPath::Direct => Path::Direct,
            KernelPath::Tunnel => Path::Tunnel,
            KernelPath::Waypoint => Path::Waypoint,
        }
    }
}

/// The address of a client that was refused before it had a port.
fn unbound(source: Option<&Workload>, server: SocketAddr) -> SocketAddr {
    let addresses = || source.into_iter().flat_map(|source| &source.addresses);
    let nowhere = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let own = addresses().find(|address| address.is_ipv4() == server.is_ipv4());
    SocketAddr::new(own.copied().unwrap_or(nowhere), 0)
}

#[cfg(test)]
mod tests;
