//! The direct path: which verdicts the kernel may cache ([`verdict`]), which cached verdicts a change makes
//! stale ([`affected`], [`Sources`]), and whether an open connection may stay open ([`may_stay`]).
//!
//! The kernel caches a verdict for a pair of workloads and an address, with the destination's *generation*.
//! A decision reads the generation first and the mesh second. A change publishes the mesh first and gives
//! new generations to the affected destinations second. So a verdict of an older mesh never has the newest
//! generation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::denial::Denial;
use crate::inbound;
use crate::mesh::{Mesh, Touched};
use crate::model::{Identity, Scope, Workload, WorkloadUid};
use crate::ownership::{self, Owner};

/// Why a connection may not take the direct path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The connection is denied on every path.
    Denied(Denial),
    /// The direct path is switched off for this client or server.
    Disabled(WorkloadUid),
    /// The server demands TLS on its own node too.
    TlsDemanded(WorkloadUid),
    /// A waypoint stands between.
    Waypoint(WorkloadUid),
    /// The decision depends on the source address, or is to be reported each time: it must not be cached.
    NotCacheable,
    /// The links of the two pods carry no direct connections.
    Links,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(denial) => denial.fmt(f),
            Self::Disabled(uid) => write!(f, "{uid} has the direct path switched off"),
            Self::TlsDemanded(uid) => write!(f, "{uid} demands TLS on its own node too"),
            Self::Waypoint(uid) => write!(f, "{uid} is reached through its waypoint"),
            Self::NotCacheable => f.write_str("the decision holds for one connection only"),
            Self::Links => f.write_str("the links of the two pods carry no direct connections"),
        }
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// Whether the kernel may cache the verdict that `source` may connect to `destination` at `address`, both on
/// one node.
pub fn verdict(
    mesh: &Mesh,
    source: &WorkloadUid,
    destination: &WorkloadUid,
    address: SocketAddr,
) -> Result<(), Refusal> {
    let (from, to) = known(mesh, source, destination)?;
    if !from.in_mesh() {
        return Err(Denial::SourceUnknown(source.clone()).into());
    }
    if !from.direct {
        return Err(Refusal::Disabled(source.clone()));
    }
    eligible(to)?;
    // A tunnel would fail in its TLS handshake.
    if !to.identities().any(|own| own.trust_domain == from.trust_domain) {
        return Err(Refusal::NotCacheable);
    }
    // Another workload that claims the address may be meant.
    match ownership::owner(mesh, &from.namespace, address) {
        Some(Owner::Workload(owner)) if owner.uid == *destination => {}
        // The client reached it as a service's endpoint. To the kernel the address would be the workload's.
        Some(Owner::Service(_) | Owner::NoPort(_)) => return Err(Refusal::NotCacheable),
        _ => {
            let address = address.ip();
            return Err(Denial::AddressMismatch { workload: destination.clone(), address }.into());
        }
    }
    // Any of its addresses will do: a decision that depends on the address is not cached.
    let Some(own) = from.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4()) else {
        return Err(Refusal::NotCacheable);
    };
    let decision = inbound::authorize_tunnel(mesh, destination, address, &from.identity(), *own);
    let permit = decision.outcome?;
    if permit.depends_on_source() || !decision.dry_run.is_empty() {
        return Err(Refusal::NotCacheable);
    }
    Ok(())
}

/// Whether a workload can be reached on the direct path at all.
pub fn eligible(destination: &Workload) -> Result<(), Refusal> {
    if destination.acting_waypoint().is_some() {
        return Err(Refusal::Waypoint(destination.uid.clone()));
    }
    if !destination.in_mesh() {
        return Err(Denial::WorkloadUnknown(destination.uid.clone()).into());
    }
    switched_on(destination)
}

fn switched_on(destination: &Workload) -> Result<(), Refusal> {
    if !destination.direct {
        return Err(Refusal::Disabled(destination.uid.clone()));
    }
    if destination.same_node_tls {
        return Err(Refusal::TlsDemanded(destination.uid.clone()));
    }
    Ok(())
}

fn known<'a>(
    mesh: &'a Mesh,
    source: &WorkloadUid,
    destination: &WorkloadUid,
) -> Result<(&'a Arc<Workload>, &'a Arc<Workload>), Denial> {
    let from = mesh.workload(source).ok_or_else(|| Denial::SourceUnknown(source.clone()))?;
    let to = mesh.workload(destination).ok_or_else(|| Denial::WorkloadUnknown(destination.clone()))?;
    Ok((from, to))
}

/// Whether an open direct connection may stay open. `source` is the client's current workload, or its last
/// one where it has been removed from the mesh before its pod has ended.
pub fn may_stay(
    mesh: &Mesh,
    source: &Workload,
    destination: &WorkloadUid,
    client: SocketAddr,
    server: SocketAddr,
) -> Result<(), Refusal> {
    let to = mesh.workload(destination).ok_or_else(|| Denial::WorkloadUnknown(destination.clone()))?;
    if !source.direct {
        return Err(Refusal::Disabled(source.uid.clone()));
    }
    switched_on(to)?;
    let decision = inbound::authorize_tunnel(mesh, destination, server, &source.identity(), client.ip());
    Ok(decision.outcome.map(drop)?)
}

/// The local destinations whose verdicts and open connections a change may affect. Destinations that it
/// cannot affect are left out: a new generation refuses connections that are being established.
pub fn affected<'a>(
    before: &Mesh,
    after: &Mesh,
    touched: &Touched,
    local: impl IntoIterator<Item = &'a WorkloadUid>,
) -> BTreeSet<WorkloadUid> {
    let scopes = Scopes::of(before, after, touched);
    let is_affected = |uid: &WorkloadUid| {
        let states = [before.workload(uid), after.workload(uid)];
        let mut known = states.into_iter().flatten();
        if known.clone().any(|workload| scopes.apply_to(workload, touched)) {
            return true;
        }
        let changed =
            touched.workloads.contains(uid) && as_destination(states[0]) != as_destination(states[1]);
        let mut addresses = known.by_ref().flat_map(|workload| &workload.addresses);
        changed
            || addresses.any(|address| {
                touched.addresses.contains(&address.to_canonical())
                    && owners(before, *address) != owners(after, *address)
            })
    };
    local.into_iter().filter(|uid| is_affected(uid)).cloned().collect()
}

/// What may own the address: all claimants, since it depends on the client's namespace which one does.
fn owners(mesh: &Mesh, address: IpAddr) -> impl PartialEq + '_ {
    let workloads = mesh.workloads_by_address(address);
    let workloads: Vec<_> = workloads.map(|w| (&w.uid, &w.origin, w.in_mesh())).collect();
    let services = mesh.services_by_address(address);
    let services: Vec<_> = services.map(|s| (&s.key, &s.origin, &s.ports, s.shares(address))).collect();
    (workloads, services)
}

/// Which workloads the policies of a change apply to.
#[derive(Default)]
struct Scopes {
    all: bool,
    namespaces: BTreeSet<Arc<str>>,
}

impl Scopes {
    fn of(before: &Mesh, after: &Mesh, touched: &Touched) -> Self {
        let mut scopes = Self::default();
        for key in &touched.policies {
            for policy in [before.policy(key), after.policy(key)].into_iter().flatten() {
                match policy.scope {
                    Scope::Global => scopes.all = true,
                    Scope::Namespace => {
                        scopes.namespaces.insert(key.namespace.clone());
                    }
                    // Workloads that name it are found by name, whether or not it exists.
                    Scope::WorkloadSelector => {}
                }
            }
        }
        scopes
    }

    fn apply_to(&self, workload: &Workload, touched: &Touched) -> bool {
        self.all
            || self.namespaces.contains(&workload.namespace)
            || workload.policies.iter().any(|key| touched.policies.contains(key))
    }
}

/// All attributes of a destination that a verdict depends on, besides policies.
fn as_destination(workload: Option<&Arc<Workload>>) -> Option<impl PartialEq + '_> {
    workload.map(|workload| {
        (
            (&workload.namespace, &workload.addresses, workload.in_mesh(), &workload.policies),
            (workload.waypoint.clone(), workload.require_waypoint, workload.direct, workload.same_node_tls),
            (&workload.trust_domain, &workload.trust_domain_aliases, &workload.excluded_ports.inbound),
        )
    })
}

/// The attributes of the node's workloads that verdicts for them as clients depend on.
#[derive(Clone, Debug, Default)]
pub struct Sources(BTreeMap<WorkloadUid, Source>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    identity: Identity,
    in_mesh: bool,
    direct: bool,
}

impl Sources {
    /// Follows the mesh. True if one of the workloads has changed: then its cached verdicts are stale,
    /// whatever the destination.
    ///
    /// A workload that has been removed counts as unchanged: a pod that is being deleted leaves the mesh
    /// before it ends.
    pub fn follow<'a>(&mut self, mesh: &Mesh, local: impl IntoIterator<Item = &'a WorkloadUid>) -> bool {
        let mut changed = false;
        for uid in local {
            let Some(workload) = mesh.workload(uid) else { continue };
            let (identity, in_mesh) = (workload.identity(), workload.in_mesh());
            let now = Source { identity, in_mesh, direct: workload.direct };
            let before = self.0.insert(uid.clone(), now.clone());
            // A workload that has just joined the mesh had no verdicts.
            let joined =
                |before: &Source| !before.in_mesh && Source { in_mesh: now.in_mesh, ..before.clone() } == now;
            changed |= before.is_some_and(|before| before != now && !joined(&before));
        }
        changed
    }

    /// Forgets a workload that has left the node: its verdicts have been removed.
    pub fn forget(&mut self, uid: &WorkloadUid) {
        self.0.remove(uid);
    }
}
