//! What arrives at an enrolled workload: whether a tunnel request is in order ([`request`]), and which of its
//! ports take plaintext ([`capture_mode`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::Denial;
use crate::mesh::Mesh;
use crate::model::{Action, Authorization, Identity, Workload, WorkloadUid};
use crate::policy::matching::{self, Facts, Truth, Whence, Who};
use crate::policy::{self, Decision, Peer};

/// No tunnel ends on these: ztunnel's own ports in every mesh of this wire.
pub const RESERVED_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];

/// Where tunnels arrive.
pub const HBONE_PORT: u16 = 15008;

/// Whether a tunnel to `authority`, asked of a workload by an authenticated peer, may be opened.
pub fn request(
    mesh: &Mesh,
    workload: &WorkloadUid,
    authority: SocketAddr,
    peer: &Identity,
    source: IpAddr,
) -> Decision {
    if RESERVED_PORTS.contains(&authority.port()) {
        return Decision::refused(Denial::ReservedPort(authority.port()));
    }
    policy::authorize(mesh, workload, &Peer { identity: Some(peer), source, destination: authority })
}

/// What the kernel does with a plaintext connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Passes it to the application: no policy selects the workload for the port, or the workload excludes
    /// the port.
    Open,
    /// Hands it to ztunnel, which decides.
    Check,
    /// Refuses it: every peer without identity is refused, whatever its address.
    Strict,
}

/// The plaintext modes of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// For ports not listed.
    pub default: Mode,
    pub ports: BTreeMap<u16, Mode>,
    /// Ports that the workload's own node may reach under any policy.
    pub probe_ports: BTreeSet<u16>,
}

/// Beyond so many ports that policies mention, plaintext is checked one by one: the kernel's table of ports
/// is shared by all pods of a node, and one workload's policies must not fill it.
const MOST_PORTS: usize = 1024;

/// Which of a workload's ports take plaintext. A workload that is not known, or that names a policy that is
/// not known, is checked, and so refused.
pub fn capture_mode(mesh: &Mesh, workload: &WorkloadUid) -> Inbound {
    let mut inbound = Inbound { default: Mode::Check, ports: BTreeMap::new(), probe_ports: BTreeSet::new() };
    let Some(workload) = mesh.workload(workload) else { return inbound };
    inbound.probe_ports.extend(&workload.probe_ports);
    let excluded = || workload.excluded_ports.inbound.iter().map(|port| (*port, Mode::Open));
    inbound.ports.extend(excluded());
    if mesh.missing_policy(workload).is_some() {
        return inbound;
    }
    let policies = mesh.policies_for(workload);
    let mentioned = mentioned_ports(&policies);
    if mentioned.len() > MOST_PORTS {
        return inbound;
    }
    // Any port that no policy mentions stands for all of them; with every port mentioned there is none to
    // speak for.
    if let Some(other) = (1..=u16::MAX).find(|port| !mentioned.contains(port)) {
        inbound.default = port_mode(workload, &policies, other);
    }
    let modes = mentioned.into_iter().map(|port| (port, port_mode(workload, &policies, port)));
    inbound.ports = modes.chain(excluded()).collect();
    inbound.ports.retain(|_, mode| *mode != inbound.default);
    inbound
}

fn mentioned_ports(policies: &[&Arc<Authorization>]) -> BTreeSet<u16> {
    let rules = policies.iter().flat_map(|policy| &policy.rules);
    let matches = rules.flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches);
    matches.flat_map(|m| m.destination_ports.iter().chain(&m.not_destination_ports)).copied().collect()
}

fn port_mode(workload: &Workload, policies: &[&Arc<Authorization>], port: u16) -> Mode {
    let destinations =
        || workload.addresses.iter().map(move |address| SocketAddr::new(address.to_canonical(), port));
    let selects = |policy: &Authorization| {
        policy.action == Action::Allow
            || destinations().any(|destination| {
                let facts = Facts { who: Who::Anyone, whence: Whence::Anywhere, destination };
                matching::policy(policy, &facts).0 != Truth::No
            })
    };
    if workload.addresses.is_empty() {
        return Mode::Check;
    }
    if !policies.iter().any(|policy| selects(policy)) {
        return Mode::Open;
    }
    if destinations().all(|destination| refuses_unidentified(policies, destination)) {
        return Mode::Strict;
    }
    Mode::Check
}

/// Whether every peer without identity is refused at the destination, wherever it comes from.
fn refuses_unidentified(policies: &[&Arc<Authorization>], destination: SocketAddr) -> bool {
    let facts = Facts { who: Who::Unidentified, whence: Whence::Anywhere, destination };
    let of_action = |action| policies.iter().filter(move |policy| !policy.dry_run && policy.action == action);
    if of_action(Action::Deny).any(|policy| matching::policy(policy, &facts).0 == Truth::Yes) {
        return true;
    }
    let allowed = of_action(Action::Allow).map(|policy| matching::policy(policy, &facts).0).max();
    allowed == Some(Truth::No)
}
