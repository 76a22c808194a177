//! Whether a peer may reach a workload: [`authorize`], the one place that makes a [`Permit`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::mesh::Mesh;
use crate::model::{Action, Authorization, Identity, PolicyKey, Workload, WorkloadUid};
use crate::{Asked, Denial};

pub(crate) mod matching;

use matching::{Facts, Truth, Whence};

/// Who asks for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer<'a> {
    /// From the peer's certificate; `None` for plaintext.
    pub identity: Option<&'a Identity>,
    pub source: IpAddr,
    /// The application's address and port.
    pub destination: SocketAddr,
}

/// The right to forward one connection to a workload's application. Only [`authorize`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    workload: Arc<Workload>,
    address: SocketAddr,
    policy: Option<PolicyKey>,
    depends_on_source: bool,
}

impl Permit {
    /// The workload that may be reached.
    pub fn workload(&self) -> &Arc<Workload> {
        &self.workload
    }

    /// The application's address and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The ALLOW policy that matched; `None` where no ALLOW policy concerns the workload.
    pub fn policy(&self) -> Option<&PolicyKey> {
        self.policy.as_ref()
    }

    /// Whether another source address could have had another answer: such a permit must not be remembered.
    pub fn depends_on_source(&self) -> bool {
        self.depends_on_source
    }
}

/// What was decided, and what dry-run policies would have said.
#[derive(Debug, PartialEq, Eq)]
pub struct Decision {
    pub outcome: Result<Permit, Denial>,
    /// One entry for each dry-run policy that concerns the workload.
    pub dry_run: Vec<DryRun>,
}

impl Decision {
    pub(crate) fn refused(denial: Denial) -> Self {
        Self { outcome: Err(denial), dry_run: Vec::new() }
    }
}

/// How a policy in dry run stands to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRun {
    pub policy: PolicyKey,
    pub action: Action,
    /// Whether it matches.
    pub matched: bool,
}

/// Decides whether the peer may reach the workload. Order: plaintext to a port that the workload excludes
/// from capture is let through; a DENY match denies; where ALLOW policies concern the workload, one must
/// match; else the answer is yes.
pub fn authorize(mesh: &Mesh, destination: &WorkloadUid, peer: &Peer<'_>) -> Decision {
    let Some(workload) = mesh.workload(destination) else {
        return Decision::refused(Denial::WorkloadUnknown(destination.clone()));
    };
    let address = SocketAddr::new(peer.destination.ip().to_canonical(), peer.destination.port());
    if !workload.has_address(address.ip()) {
        return Decision::refused(Denial::AddressMismatch {
            workload: destination.clone(),
            address: address.ip(),
        });
    }
    if peer.identity.is_none() && workload.excluded_ports.inbound.contains(&address.port()) {
        let permit = Permit { workload: workload.clone(), address, policy: None, depends_on_source: false };
        return Decision { outcome: Ok(permit), dry_run: Vec::new() };
    }
    let facts = Facts {
        who: peer.identity.into(),
        whence: Whence::Address(peer.source.to_canonical()),
        destination: address,
    };
    let (dry, enforced): (Vec<_>, Vec<_>) = mesh.policies_for(workload).into_iter().partition(|p| p.dry_run);
    let outcome = enforce(mesh, workload, &enforced, &facts, peer).map(|policy| Permit {
        workload: workload.clone(),
        address,
        policy,
        depends_on_source: enforced.iter().any(|policy| names_sources(policy)),
    });
    let dry_run = dry.into_iter().map(|policy| DryRun {
        policy: policy.key.clone(),
        action: policy.action,
        matched: matching::policy(policy, &facts).0 == Truth::Yes,
    });
    Decision { outcome, dry_run: dry_run.collect() }
}

/// The ALLOW policy that matched, if any had to.
fn enforce(
    mesh: &Mesh,
    workload: &Workload,
    policies: &[&Arc<Authorization>],
    facts: &Facts<'_>,
    peer: &Peer<'_>,
) -> Result<Option<PolicyKey>, Denial> {
    // It may deny.
    if let Some(policy) = mesh.missing_policy(workload) {
        return Err(Denial::PolicyMissing { policy: policy.clone(), workload: workload.uid.clone() });
    }
    let asked = || {
        Box::new(Asked {
            identity: peer.identity.cloned(),
            source: peer.source.to_canonical(),
            workload: workload.uid.clone(),
            destination: facts.destination,
        })
    };
    let of_action = |action| policies.iter().filter(move |policy| policy.action == action);
    for policy in of_action(Action::Deny) {
        let (truth, rule) = matching::policy(policy, facts);
        if truth != Truth::No {
            return Err(Denial::PolicyDenied { policy: policy.key.clone(), rule, asked: asked() });
        }
    }
    let mut selected = false;
    for policy in of_action(Action::Allow) {
        selected = true;
        if matching::policy(policy, facts).0 == Truth::Yes {
            return Ok(Some(policy.key.clone()));
        }
    }
    if selected { Err(Denial::PolicyNotAllowed(asked())) } else { Ok(None) }
}

fn names_sources(policy: &Authorization) -> bool {
    let matches = policy.rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches);
    matches.into_iter().any(|m| !m.source_ips.is_empty() || !m.not_source_ips.is_empty())
}
