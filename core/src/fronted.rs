//! What a waypoint serves: [`fronted`], by the address that its client dialled.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::denial::Denial;
use crate::mesh::Mesh;
use crate::model::{Service, Waypoint, Workload};
use crate::outbound::serves;
use crate::ownership::{self, Owner};

/// What a client dialled, in front of which this waypoint stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fronted {
    /// A port of a service.
    Service {
        /// The service.
        service: Arc<Service>,
        /// One of its ports.
        port: u16,
    },
    /// A port of a workload.
    Workload {
        /// The workload.
        workload: Arc<Workload>,
        /// The address that was dialled.
        address: SocketAddr,
    },
}

/// The owner of the address for clients of a namespace, if this waypoint stands in front of it. Anything else
/// is denied: a proxy that connects to whatever it is asked for would lend its identity to every client.
pub fn fronted(
    mesh: &Mesh,
    waypoint: &Workload,
    client: &str,
    address: SocketAddr,
) -> Result<Fronted, Denial> {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    match ownership::owner(mesh, client, address) {
        Some(Owner::Service(service)) => {
            bound(waypoint, service.waypoint.as_ref(), || format!("service {}", service.key))?;
            Ok(Fronted::Service { service: service.clone(), port: address.port() })
        }
        Some(Owner::Workload(workload)) => {
            bound(waypoint, workload.waypoint.as_ref(), || format!("workload {}", workload.uid))?;
            Ok(Fronted::Workload { workload: workload.clone(), address })
        }
        Some(Owner::NoPort(service)) => {
            Err(Denial::ServicePortUnknown { service: service.key.clone(), port: address.port() })
        }
        Some(Owner::Node(_)) | None => Err(Denial::DestinationUnknown(address)),
    }
}

fn bound(
    own: &Workload,
    binding: Option<&Waypoint>,
    destination: impl FnOnce() -> String,
) -> Result<(), Denial> {
    if binding.is_some_and(|binding| serves(own, binding)) {
        Ok(())
    } else {
        Err(Denial::NotFronted(destination()))
    }
}
