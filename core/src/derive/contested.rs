//! Which of an entry's claims to an address are not in force, and whose the address is instead: [`of_entry`]
//! and [`of_workload`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::object::ServiceEntry;
use crate::mesh::Mesh;
use crate::model::{Exported, Workload};
use crate::ownership::{self, Owner};

/// What an entry lost of an address.
pub(super) struct Lost {
    /// One for each winner.
    pub(super) messages: Vec<String>,
    /// Whether nothing is left to the entry.
    pub(super) entirely: bool,
}

/// Stands for the clients of a namespace without objects of its own.
const OTHERS: &str = "";

/// What a service entry with these ports lost of one of its addresses.
pub(super) fn of_entry(mesh: &Mesh, entry: &ServiceEntry, ports: &[u16], address: IpAddr) -> Lost {
    let metadata = &entry.metadata;
    judge(mesh, address, ports, &entry.exported, &metadata.namespace, |owner| match owner {
        Owner::Service(service) => {
            service.origin.claim().is_some()
                && *service.key.namespace == *metadata.namespace
                && *service.name == *metadata.name
        }
        _ => false,
    })
}

/// What a workload entry lost of one of its addresses.
pub(super) fn of_workload(mesh: &Mesh, workload: &Workload, address: IpAddr) -> Lost {
    // It claims the whole address: port 0 is no service's.
    judge(mesh, address, &[0], &Exported::Everywhere, &workload.namespace, |owner| match owner {
        Owner::Workload(owner) => owner.uid == workload.uid,
        _ => false,
    })
}

fn judge(
    mesh: &Mesh,
    address: IpAddr,
    ports: &[u16],
    exported: &Exported,
    namespace: &str,
    is_own: impl Fn(Owner<'_>) -> bool,
) -> Lost {
    let views: BTreeSet<&str> = match exported {
        Exported::Everywhere => [namespace, OTHERS].into(),
        Exported::To(namespaces) => namespaces.iter().map(|namespace| &**namespace).collect(),
    };
    let mut won = false;
    let mut winners: BTreeMap<String, BTreeSet<(&str, u16)>> = BTreeMap::new();
    for view in views.iter().copied() {
        for port in ports.iter().copied() {
            match ownership::owner(mesh, view, SocketAddr::new(address, port)) {
                Some(owner) if is_own(owner) => won = true,
                Some(owner) => drop(winners.entry(name(owner)).or_default().insert((view, port))),
                None => {}
            }
        }
    }
    let messages = winners.iter().map(|(winner, lost)| {
        let lost_views: BTreeSet<&str> = lost.iter().map(|(view, _)| *view).collect();
        let lost_ports: BTreeSet<u16> = lost.iter().map(|(_, port)| *port).collect();
        let on = if lost_ports.len() == ports.len() { String::new() } else { on_ports(&lost_ports) };
        let scope = if lost_views == views { String::new() } else { for_clients(&lost_views) };
        format!("{address} is not in force here{on}{scope}: it belongs to {winner}")
    });
    Lost { messages: messages.collect(), entirely: !won && !winners.is_empty() }
}

fn on_ports(ports: &BTreeSet<u16>) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!(" on port {}", ports.join(", "))
}

fn for_clients(views: &BTreeSet<&str>) -> String {
    let named: Vec<&str> = views.iter().copied().filter(|view| *view != OTHERS).collect();
    if views.contains(OTHERS) {
        " for clients of other namespaces".to_owned()
    } else {
        format!(" for clients of {}", named.join(", "))
    }
}

/// The owner's object.
fn name(owner: Owner<'_>) -> String {
    match owner {
        Owner::Service(service) | Owner::NoPort(service) => {
            let kind = if service.origin.claim().is_some() { "ServiceEntry" } else { "Service" };
            format!("{kind} {}/{}", service.key.namespace, service.name)
        }
        Owner::Workload(workload) => {
            let kind = match workload.origin.claim() {
                None => "Pod",
                Some(_) if workload.uid.0.contains("/networking.istio.io/ServiceEntry/") => "ServiceEntry",
                Some(_) => "WorkloadEntry",
            };
            format!("{kind} {}/{}", workload.namespace, workload.name)
        }
        Owner::Node(pod) => format!("Node {}", pod.node),
    }
}
