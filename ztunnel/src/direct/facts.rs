//! Who talks to whom on a connection that the kernel carries or refused: [`Seen`] → [`Facts`].

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ambit_core::mesh::Mesh;
use ambit_core::model::Workload;
use ambit_core::{inbound, outbound};
use ambit_daemon_kit::telemetry::connection::{Direction, End, Facts, Path};
use ambit_loader::{Flow, Record, WorkloadNumber};

use super::names::Names;

/// What the kernel says of a connection.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) path: ambit_loader::Path,
    pub(super) source: Option<WorkloadNumber>,
    pub(super) destination: Option<WorkloadNumber>,
    /// None where a `connect()` was refused.
    pub(super) client: Option<SocketAddr>,
    pub(super) server: SocketAddr,
    pub(super) asked: Option<SocketAddr>,
}

impl From<&Flow> for Seen {
    fn from(flow: &Flow) -> Self {
        Self {
            path: flow.path,
            source: flow.source,
            destination: Some(flow.destination),
            client: Some(flow.client),
            server: flow.server,
            asked: flow.asked,
        }
    }
}

impl From<&Record> for Seen {
    fn from(record: &Record) -> Self {
        Self {
            path: record.path,
            source: record.source,
            destination: record.destination,
            client: record.client,
            server: record.server,
            asked: record.asked,
        }
    }
}

impl Seen {
    /// The reports to make: both ends' of a direct connection, since both are this node's; the server's of
    /// one that arrived; the client's of a `connect()` that was refused.
    pub(super) fn reports(&self, mesh: &Mesh, names: &Names) -> Vec<Facts> {
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
        let facts = |direction| Facts {
            direction,
            path,
            mutual_tls: false,
            source: End { address: client, identity: proven(&source), workload: source.clone() },
            destination: End {
                address: self.server,
                identity: proven(&destination),
                workload: destination.clone(),
            },
            hbone_address: None,
            service: service.cloned(),
        };
        match (self.client, path) {
            (None, _) => vec![facts(Direction::Outbound)],
            (Some(_), Path::Direct) => vec![facts(Direction::Outbound), facts(Direction::Inbound)],
            (Some(_), _) => vec![facts(Direction::Inbound)],
        }
    }

    fn path(&self) -> Path {
        match self.path {
            ambit_loader::Path::Native => Path::Native,
            ambit_loader::Path::Direct => Path::Direct,
            ambit_loader::Path::Tunnel => Path::Tunnel,
            ambit_loader::Path::Waypoint => Path::Waypoint,
        }
    }
}

/// A client's end that was refused before it had a port.
fn unbound(source: Option<&Workload>, server: SocketAddr) -> SocketAddr {
    let addresses = || source.into_iter().flat_map(|source| &source.addresses);
    let nowhere = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let own = addresses().find(|address| address.is_ipv4() == server.is_ipv4());
    SocketAddr::new(own.copied().unwrap_or(nowhere), 0)
}

#[cfg(test)]
mod tests {
    use ambit_core::mesh::Change;
    use ambit_loader::Path as Carried;

    use super::*;
    use crate::testing::{endpoint_of, mesh, put, service, uid, workload};

    const WEB: Option<WorkloadNumber> = Some(WorkloadNumber(1));
    const CART: Option<WorkloadNumber> = Some(WorkloadNumber(2));

    #[test]
    fn both_ends_are_named_as_far_as_they_are_known() {
        let mesh = mesh([
            put(workload("web", &["10.0.0.1"])),
            Change::PutService(Arc::new(service("cart", "10.96.0.1"))),
            put(endpoint_of(workload("cart", &["10.0.1.1"]), "cart")),
            put(workload("far", &["10.7.0.1"])),
        ]);
        let names = Names::default();
        names.enrolled(WEB.unwrap(), &uid("web"));
        names.enrolled(CART.unwrap(), &uid("cart"));
        names.follow(&mesh, None);
        let socket = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let seen =
            |path, source, destination, client: Option<&str>, server: &str, asked: Option<&str>| Seen {
                path,
                source,
                destination,
                client: client.map(socket),
                server: socket(server),
                asked: asked.map(socket),
            };
        let (web, far, app) = ("10.0.0.1:4000", "10.7.0.1:4000", "10.0.1.1:8080");
        let vip = Some("10.96.0.1:80");
        let rows = [
            (
                "direct, by its service",
                seen(Carried::Direct, WEB, CART, Some(web), app, vip),
                "outbound inbound",
                Some("web"),
                true,
                Some("cart"),
            ),
            (
                "direct, by the pod's address",
                seen(Carried::Direct, WEB, CART, Some(web), app, Some(app)),
                "outbound inbound",
                Some("web"),
                true,
                None,
            ),
            (
                "native, from elsewhere",
                seen(Carried::Native, None, CART, Some(far), app, None),
                "inbound",
                Some("far"),
                false,
                Some("cart"),
            ),
            (
                "native, from nobody known",
                seen(Carried::Native, None, CART, Some("192.0.2.1:9"), app, None),
                "inbound",
                None,
                false,
                Some("cart"),
            ),
            (
                "a refused connect",
                seen(Carried::Tunnel, WEB, None, None, "10.96.0.1:80", vip),
                "outbound",
                Some("web"),
                false,
                Some("cart"),
            ),
        ];
        for (name, seen, directions, source, proven, service) in rows {
            let reports = seen.reports(&mesh, &names);
            let found: Vec<_> = reports.iter().map(|facts| facts.direction.as_str()).collect();
            assert_eq!(found.join(" "), directions, "{name}");
            for facts in reports {
                assert_eq!(facts.source.workload.as_ref().map(|w| &*w.name), source, "{name}");
                assert_eq!(facts.source.identity.is_some(), proven, "{name}");
                assert_eq!(facts.destination.identity.is_some(), proven, "{name}");
                assert_eq!(facts.service.as_ref().map(|s| &*s.name), service, "{name}");
                assert!(!facts.mutual_tls, "{name}");
            }
        }
        let refused = seen(Carried::Tunnel, WEB, None, None, "10.96.0.1:80", vip).reports(&mesh, &names);
        assert_eq!(refused[0].source.address, socket("10.0.0.1:0"), "who it was, before it had a port");
    }
}
