//! The direct path: which yes the kernel may remember ([`verdict`]), which of them a change takes back
//! ([`concerned`], [`Sources`]), and whether a connection that is open may stay open ([`stays`]).
//!
//! The kernel keeps a yes for a pair of workloads and an address, with the destination's *generation*.
//! Whoever decides reads the generation first and the mesh afterwards; whoever changes the mesh publishes it
//! first and then gives new generations to those concerned. So a yes that rests on an older mesh never has
//! the newest generation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::mesh::{Mesh, Touched};
use crate::model::{Identity, Scope, Workload, WorkloadUid};
use crate::{Denial, inbound};

/// Why a pair of workloads does not use the direct path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It may not connect at all.
    Denied(Denial),
    /// One of the two has the direct path switched off.
    SwitchedOff(WorkloadUid),
    /// The destination demands TLS also from its own node.
    TlsDemanded(WorkloadUid),
    /// The answer holds for this source address, or is to be reported each time: the daemon must be asked
    /// each time.
    AskAgain,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(denial) => denial.fmt(f),
            Self::SwitchedOff(uid) => write!(f, "{uid} has the direct path switched off"),
            Self::TlsDemanded(uid) => write!(f, "{uid} demands TLS on its own node too"),
            Self::AskAgain => f.write_str("the decision holds for one connection only"),
        }
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// Whether the kernel may remember that `source` may connect to `destination` at `address`, both on one node.
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
        return Err(Refusal::SwitchedOff(source.clone()));
    }
    eligible(to)?;
    // As the destination's TLS has it.
    if !to.identities().any(|own| own.trust_domain == from.trust_domain) {
        return Err(Refusal::AskAgain);
    }
    // Who asks for the address must mean this workload, not another that claims it.
    if mesh.workload_by_address(address.ip()).is_none_or(|owner| owner.uid != *destination) {
        let address = address.ip();
        return Err(Denial::AddressMismatch { workload: destination.clone(), address }.into());
    }
    // Any of its addresses does: an answer that depends on which is not remembered.
    let Some(own) = from.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4()) else {
        return Err(Refusal::AskAgain);
    };
    let decision = inbound::request(mesh, destination, address, &from.identity(), *own);
    let permit = decision.outcome?;
    if permit.depends_on_source() || !decision.dry_run.is_empty() {
        return Err(Refusal::AskAgain);
    }
    Ok(())
}

/// Whether a workload can be reached on the direct path at all.
pub fn eligible(destination: &Workload) -> Result<(), Refusal> {
    if let Some(waypoint) = &destination.waypoint {
        let needed = format!("workload {} ({waypoint:?})", destination.uid);
        return Err(Denial::WaypointUnsupported(needed).into());
    }
    if !destination.in_mesh() {
        return Err(Denial::WorkloadUnknown(destination.uid.clone()).into());
    }
    switched_on(destination)
}

fn switched_on(destination: &Workload) -> Result<(), Refusal> {
    if !destination.direct {
        return Err(Refusal::SwitchedOff(destination.uid.clone()));
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

/// Whether an open direct connection may stay open. `source`: the client as it is known now, or as it was
/// known last where its removal is ahead of its end.
pub fn stays(
    mesh: &Mesh,
    source: &Workload,
    destination: &WorkloadUid,
    client: SocketAddr,
    server: SocketAddr,
) -> Result<(), Refusal> {
    let to = mesh.workload(destination).ok_or_else(|| Denial::WorkloadUnknown(destination.clone()))?;
    if !source.direct {
        return Err(Refusal::SwitchedOff(source.uid.clone()));
    }
    switched_on(to)?;
    let decision = inbound::request(mesh, destination, server, &source.identity(), client.ip());
    Ok(decision.outcome.map(drop)?)
}

/// The local destinations about which a change may have changed an answer: yeses towards them, and what is
/// open to them. What changes nothing about them is left out, since a connection that is just being made
/// would be refused.
pub fn concerned<'a>(
    before: &Mesh,
    after: &Mesh,
    touched: &Touched,
    local: impl IntoIterator<Item = &'a WorkloadUid>,
) -> BTreeSet<WorkloadUid> {
    let scopes = Scopes::of(before, after, touched);
    let is_concerned = |uid: &WorkloadUid| {
        let states = [before.workload(uid), after.workload(uid)];
        let mut known = states.into_iter().flatten();
        if known.clone().any(|workload| scopes.concern(workload, touched)) {
            return true;
        }
        let changed =
            touched.workloads.contains(uid) && as_destination(states[0]) != as_destination(states[1]);
        let mut addresses = known.by_ref().flat_map(|workload| &workload.addresses);
        changed
            || addresses.any(|address| {
                let owner = |mesh: &Mesh| mesh.workload_by_address(*address).map(|owner| owner.uid.clone());
                touched.addresses.contains(&address.to_canonical()) && owner(before) != owner(after)
            })
    };
    local.into_iter().filter(|uid| is_concerned(uid)).cloned().collect()
}

/// Whom the policies of a change are about.
#[derive(Default)]
struct Scopes {
    everyone: bool,
    namespaces: BTreeSet<Arc<str>>,
}

impl Scopes {
    fn of(before: &Mesh, after: &Mesh, touched: &Touched) -> Self {
        let mut scopes = Self::default();
        for key in &touched.policies {
            for policy in [before.policy(key), after.policy(key)].into_iter().flatten() {
                match policy.scope {
                    Scope::Global => scopes.everyone = true,
                    Scope::Namespace => {
                        scopes.namespaces.insert(key.namespace.clone());
                    }
                    // Those that name it, whether it is there or not.
                    Scope::WorkloadSelector => {}
                }
            }
        }
        scopes
    }

    fn concern(&self, workload: &Workload, touched: &Touched) -> bool {
        self.everyone
            || self.namespaces.contains(&workload.namespace)
            || workload.policies.iter().any(|key| touched.policies.contains(key))
    }
}

/// All that an answer can hang on at the destination's side, besides policies.
fn as_destination(workload: Option<&Arc<Workload>>) -> Option<impl PartialEq + '_> {
    workload.map(|workload| {
        (
            (&workload.namespace, &workload.addresses, workload.in_mesh(), &workload.policies),
            (workload.waypoint.is_some(), workload.direct, workload.same_node_tls),
            (&workload.trust_domain, &workload.trust_domain_aliases, &workload.excluded_ports.inbound),
        )
    })
}

/// As whom the node's workloads connect: what their yeses rest on.
#[derive(Clone, Debug, Default)]
pub struct Sources(BTreeMap<WorkloadUid, Source>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    identity: Identity,
    in_mesh: bool,
    direct: bool,
}

impl Sources {
    /// Takes in what the mesh says now; true when one of the workloads is another than before: then the
    /// answers that it got are those of somebody else, whatever the destination.
    ///
    /// One that is not known (any more) is still who it was: a pod that is being deleted leaves the mesh
    /// before it ends.
    pub fn follow<'a>(&mut self, mesh: &Mesh, local: impl IntoIterator<Item = &'a WorkloadUid>) -> bool {
        let mut changed = false;
        for uid in local {
            let Some(workload) = mesh.workload(uid) else { continue };
            let (identity, in_mesh) = (workload.identity(), workload.in_mesh());
            let now = Source { identity, in_mesh, direct: workload.direct };
            let before = self.0.insert(uid.clone(), now.clone());
            // One that only joined the mesh had no answers.
            let joined =
                |before: &Source| !before.in_mesh && Source { in_mesh: now.in_mesh, ..before.clone() } == now;
            changed |= before.is_some_and(|before| before != now && !joined(&before));
        }
        changed
    }

    /// A workload has left the node, and its yeses with it.
    pub fn forget(&mut self, uid: &WorkloadUid) {
        self.0.remove(uid);
    }
}
