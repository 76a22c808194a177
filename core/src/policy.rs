//! Whether a peer may connect to a workload: [`authorize`], the only function that makes a [`Permit`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::mesh::Mesh;
use crate::model::{Action, Authorization, Identity, PolicyKey, Workload, WorkloadUid};
use crate::{Access, Denial};

pub(crate) mod matching;
mod own_waypoint;

use matching::{Attributes, Principal, SourceAddress, Truth};

/// An inbound connection that needs authorization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// From the peer's certificate; `None` for plaintext.
    pub identity: Option<&'a Identity>,
    /// The peer's address.
    pub source: IpAddr,
    /// The application's address and port.
    pub destination: SocketAddr,
}

/// The client that a waypoint names, for which it opens a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedClient {
    /// What its certificate proved to the waypoint.
    pub identity: Identity,
    /// Its address, where the waypoint says it.
    pub address: Option<IpAddr>,
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
    /// The destination workload.
    pub fn workload(&self) -> &Arc<Workload> {
        &self.workload
    }

    /// The application's address and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The ALLOW policy that matched; `None` where no ALLOW policy applies to the workload.
    pub fn policy(&self) -> Option<&PolicyKey> {
        self.policy.as_ref()
    }

    /// Whether the decision could differ for another source address: such a permit must not be cached.
    pub fn depends_on_source(&self) -> bool {
        self.depends_on_source
    }
}

/// The outcome of an authorization, and what dry-run policies would have decided.
#[derive(Debug, PartialEq, Eq)]
pub struct Decision {
    /// The permit, or why there is none.
    pub outcome: Result<Permit, Denial>,
    /// One entry for each dry-run policy that applies to the workload.
    pub dry_run: Vec<DryRun>,
}

impl Decision {
    pub(crate) fn refused(denial: Denial) -> Self {
        Self { outcome: Err(denial), dry_run: Vec::new() }
    }
}

/// What a dry-run policy would have decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRun {
    /// The dry-run policy.
    pub policy: PolicyKey,
    /// The policy's action.
    pub action: Action,
    /// Whether the policy matches.
    pub matched: bool,
}

/// Decides whether a connection to the workload is permitted. In this order:
///
/// 1. Plaintext to a port that the workload excludes from capture is permitted.
/// 2. A DENY policy that matches denies.
/// 3. Where ALLOW policies apply to the workload, one of them must match.
/// 4. Everything else is permitted.
///
/// A workload may refuse everything that its waypoint did not send (`ambit.dev/require-waypoint`); that
/// stands before 2.
pub fn authorize(mesh: &Mesh, destination: &WorkloadUid, request: &Request<'_>) -> Decision {
    decide(mesh, destination, request, None)
}

/// Like [`authorize`], for a peer that names the client it acts for. That is believed of the workload's own
/// waypoint only: then policies look at both, a DENY policy denies if it matches either, and an ALLOW policy
/// allows if it does. So what allowed or denied a client before the waypoint came does so still. What another
/// peer names is ignored.
pub fn authorize_for(
    mesh: &Mesh,
    destination: &WorkloadUid,
    request: &Request<'_>,
    client: &NamedClient,
) -> Decision {
    decide(mesh, destination, request, Some(client))
}

/// The client that a peer names, if the peer is the workload's own waypoint.
pub fn believed<'a>(
    mesh: &Mesh,
    destination: &WorkloadUid,
    peer: &Identity,
    client: Option<&'a NamedClient>,
) -> Option<&'a NamedClient> {
    let workload = mesh.workload(destination)?;
    client.filter(|_| own_waypoint::is_own(mesh, workload, peer))
}

fn decide(
    mesh: &Mesh,
    destination: &WorkloadUid,
    request: &Request<'_>,
    client: Option<&NamedClient>,
) -> Decision {
    let Some(workload) = mesh.workload(destination) else {
        return Decision::refused(Denial::WorkloadUnknown(destination.clone()));
    };
    let address = SocketAddr::new(request.destination.ip().to_canonical(), request.destination.port());
    if !workload.has_address(address.ip()) && !may_have_gained(mesh, workload, request, address.ip()) {
        return Decision::refused(Denial::AddressMismatch {
            workload: destination.clone(),
            address: address.ip(),
        });
    }
    if request.identity.is_none() && workload.excluded_ports.inbound.contains(&address.port()) {
        let permit = Permit { workload: workload.clone(), address, policy: None, depends_on_source: false };
        return Decision { outcome: Ok(permit), dry_run: Vec::new() };
    }
    let passed = request.identity.is_some_and(|peer| own_waypoint::is_own(mesh, workload, peer));
    if workload.require_waypoint && !passed {
        let peer = request.identity.map_or_else(|| request.source.to_string(), ToString::to_string);
        return Decision::refused(Denial::WaypointRequired { workload: destination.clone(), peer });
    }
    let peer = Attributes {
        principal: request.identity.into(),
        source: SourceAddress::One(request.source.to_canonical()),
        destination: address,
    };
    let client = client.filter(|_| passed).map(|client| Attributes {
        principal: Principal::from(Some(&client.identity)),
        source: client.address.map_or(SourceAddress::Any, |ip| SourceAddress::One(ip.to_canonical())),
        destination: address,
    });
    let both: Vec<Attributes<'_>> = std::iter::once(peer).chain(client).collect();
    let (dry, enforced): (Vec<_>, Vec<_>) = mesh.policies_for(workload).into_iter().partition(|p| p.dry_run);
    let outcome = enforce(mesh, workload, &enforced, &both, request, address).map(|policy| Permit {
        workload: workload.clone(),
        address,
        policy,
        depends_on_source: enforced.iter().any(|policy| names_sources(policy)),
    });
    let dry_run = dry.into_iter().map(|policy| DryRun {
        policy: policy.key.clone(),
        action: policy.action,
        matched: either(policy, &both).0 == Truth::Yes,
    });
    Decision { outcome, dry_run: dry_run.collect() }
}

/// Whether the workload may have got the address since the mesh last heard of it. Plaintext arrives in the
/// workload's own network namespace, so the address is there; what a tunnel names is only the peer's word.
fn may_have_gained(mesh: &Mesh, workload: &Workload, request: &Request<'_>, address: IpAddr) -> bool {
    request.identity.is_none()
        && workload.has_own_address()
        && !(address.is_loopback() || address.is_unspecified())
        && mesh.workloads_by_address(address).next().is_none()
}

/// The ALLOW policy that matched, where one had to.
fn enforce(
    mesh: &Mesh,
    workload: &Workload,
    policies: &[&Arc<Authorization>],
    both: &[Attributes<'_>],
    request: &Request<'_>,
    destination: SocketAddr,
) -> Result<Option<PolicyKey>, Denial> {
    // A policy that is not known may be a DENY policy.
    if let Some(policy) = mesh.missing_policy(workload) {
        return Err(Denial::PolicyMissing { policy: policy.clone(), workload: workload.uid.clone() });
    }
    let access = || {
        Box::new(Access {
            identity: request.identity.cloned(),
            source: request.source.to_canonical(),
            workload: workload.uid.clone(),
            destination,
        })
    };
    let of_action = |action| policies.iter().filter(move |policy| policy.action == action);
    for policy in of_action(Action::Deny) {
        let (truth, rule) = either(policy, both);
        if truth != Truth::No {
            return Err(Denial::PolicyDenied { policy: policy.key.clone(), rule, access: access() });
        }
    }
    let mut has_allow = false;
    for policy in of_action(Action::Allow) {
        has_allow = true;
        if either(policy, both).0 == Truth::Yes {
            return Ok(Some(policy.key.clone()));
        }
    }
    if has_allow { Err(Denial::PolicyNotAllowed(access())) } else { Ok(None) }
}

/// Whether the policy matches the peer or the client that it acts for.
fn either(policy: &Authorization, both: &[Attributes<'_>]) -> (Truth, usize) {
    let found = both.iter().map(|attributes| matching::policy(policy, attributes));
    found.reduce(|best, next| if next.0 > best.0 { next } else { best }).unwrap_or((Truth::No, 0))
}

fn names_sources(policy: &Authorization) -> bool {
    let matches = policy.rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches);
    matches.into_iter().any(|m| !m.source_ips.is_empty() || !m.not_source_ips.is_empty())
}
