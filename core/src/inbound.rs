//! Inbound connections of an enrolled workload: whether a tunnel may be opened ([`authorize_tunnel`]), and
//! which of its ports take plaintext ([`plaintext_modes`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::denial::Denial;
use crate::mesh::Mesh;
use crate::model::{Action, Authorization, Identity, Service, Workload, WorkloadUid};
use crate::policy::matching::{self, Attributes, Principal, SourceAddress, Truth};
use crate::policy::{self, Decision, NamedClient, Request};

/// The ports of ztunnel's own listeners in Istio's wire protocol. No tunnel may end at one of them.
pub const RESERVED_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];

/// The port on which workloads receive tunnels.
pub const HBONE_PORT: u16 = 15008;

/// The header of a CONNECT request in which a waypoint names the client that it has verified: that client's
/// SPIFFE ID. With it, `forwarded` is that client's address. A destination believes it of its own waypoint
/// only.
pub const CLIENT_HEADER: &str = "ambit-client";

/// Whether an authenticated peer may open a tunnel through the workload's HBONE port to `authority`.
pub fn authorize_tunnel(
    mesh: &Mesh,
    workload: &WorkloadUid,
    authority: SocketAddr,
    peer: &Identity,
    source: IpAddr,
) -> Decision {
    authorize_tunnel_for(mesh, workload, authority, peer, source, None)
}

/// Like [`authorize_tunnel`], for a peer that may name the client it acts for ([`CLIENT_HEADER`]).
pub fn authorize_tunnel_for(
    mesh: &Mesh,
    workload: &WorkloadUid,
    authority: SocketAddr,
    peer: &Identity,
    source: IpAddr,
    client: Option<&NamedClient>,
) -> Decision {
    if RESERVED_PORTS.contains(&authority.port()) {
        return Decision::refused(Denial::ReservedPort(authority.port()));
    }
    let request = Request { identity: Some(peer), source, destination: authority };
    match client {
        Some(client) => policy::authorize_for(mesh, workload, &request, client),
        None => policy::authorize(mesh, workload, &request),
    }
}

/// The service whose target port on the workload is `port`, where there is exactly one such service: the
/// inbound side does not know which service the client asked for.
pub fn service_behind<'a>(mesh: &'a Mesh, workload: &Workload, port: u16) -> Option<&'a Arc<Service>> {
    let mut serving =
        workload.services.iter().filter(|(_, ports)| ports.iter().any(|mapping| mapping.target_port == port));
    let (key, _) = serving.next().filter(|_| serving.next().is_none())?;
    mesh.service(key)
}

/// What the kernel does with a plaintext connection to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlaintextMode {
    /// Passes it to the application: no policy applies to the port, or the workload excludes the port.
    Open,
    /// Hands it to ztunnel, which decides.
    Check,
    /// Refuses it: policy denies every peer without identity, whatever its address.
    Strict,
}

/// The plaintext modes of a workload's ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaintextModes {
    /// For ports that are not in `ports`.
    pub default: PlaintextMode,
    /// Ports that differ from the default.
    pub ports: BTreeMap<u16, PlaintextMode>,
    /// Ports that the workload's own node may reach under any policy.
    pub probe_ports: BTreeSet<u16>,
}

/// A workload whose policies name more ports than this has all plaintext checked: the kernel's map of ports
/// is shared by all pods of a node, and one workload must not fill it.
const MAX_PORTS: usize = 1024;

/// The plaintext modes of a workload's ports. A workload that is not known, or that names a policy that is
/// not known, has its plaintext checked, and so refused.
pub fn plaintext_modes(mesh: &Mesh, workload: &WorkloadUid) -> PlaintextModes {
    let mut modes = PlaintextModes {
        default: PlaintextMode::Check,
        ports: BTreeMap::new(),
        probe_ports: BTreeSet::new(),
    };
    let Some(workload) = mesh.workload(workload) else { return modes };
    modes.probe_ports.extend(&workload.probe_ports);
    let excluded = || workload.excluded_ports.inbound.iter().map(|port| (*port, PlaintextMode::Open));
    modes.ports.extend(excluded());
    if mesh.missing_policy(workload).is_some() {
        return modes;
    }
    if workload.require_waypoint {
        // No waypoint comes without an identity.
        modes.default = PlaintextMode::Strict;
        return modes;
    }
    let policies = mesh.policies_for(workload);
    let named = named_ports(&policies);
    if named.len() > MAX_PORTS {
        return modes;
    }
    // All ports that no policy names have the same mode, so one of them is asked about.
    if let Some(other) = (1..=u16::MAX).find(|port| !named.contains(port)) {
        modes.default = port_mode(workload, &policies, other);
    }
    let of_named = named.into_iter().map(|port| (port, port_mode(workload, &policies, port)));
    modes.ports = of_named.chain(excluded()).collect();
    modes.ports.retain(|_, mode| *mode != modes.default);
    modes
}

fn named_ports(policies: &[&Arc<Authorization>]) -> BTreeSet<u16> {
    let rules = policies.iter().flat_map(|policy| &policy.rules);
    let matches = rules.flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches);
    matches.flat_map(|m| m.destination_ports.iter().chain(&m.not_destination_ports)).copied().collect()
}

fn port_mode(workload: &Workload, policies: &[&Arc<Authorization>], port: u16) -> PlaintextMode {
    let destinations =
        || workload.addresses.iter().map(move |address| SocketAddr::new(address.to_canonical(), port));
    let applies = |policy: &Authorization| {
        policy.action == Action::Allow
            || destinations().any(|destination| {
                let attributes =
                    Attributes { principal: Principal::Any, source: SourceAddress::Any, destination };
                matching::policy(policy, &attributes).0 != Truth::No
            })
    };
    if workload.addresses.is_empty() {
        return PlaintextMode::Check;
    }
    if !policies.iter().any(|policy| applies(policy)) {
        return PlaintextMode::Open;
    }
    if destinations().all(|destination| denies_unauthenticated(policies, destination)) {
        return PlaintextMode::Strict;
    }
    PlaintextMode::Check
}

/// Whether every peer without identity is denied at the destination, whatever its address.
fn denies_unauthenticated(policies: &[&Arc<Authorization>], destination: SocketAddr) -> bool {
    let attributes =
        Attributes { principal: Principal::Unauthenticated, source: SourceAddress::Any, destination };
    let of_action = |action| policies.iter().filter(move |policy| !policy.dry_run && policy.action == action);
    if of_action(Action::Deny).any(|policy| matching::policy(policy, &attributes).0 == Truth::Yes) {
        return true;
    }
    let allowed = of_action(Action::Allow).map(|policy| matching::policy(policy, &attributes).0).max();
    allowed == Some(Truth::No)
}
