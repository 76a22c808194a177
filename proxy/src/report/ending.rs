//! Why connections end: every [`Reason`] and [`Denial`] as the [`Ending`] that is reported.
//!
//! Entry points: [`orderly`], [`broken`], [`unmade`], [`exhausted`], [`denied`]. Also the reports of policies
//! in dry run ([`dry_run`], metric `ambit_policy_dry_run_total`).

use ambit_core::model::{Action, WorkloadUid};
use ambit_core::policy::DryRun;
use ambit_core::{Denial, Reason};
use ambit_daemon_kit::telemetry::instruments::Counters;

use super::connection::{ConnectionInfo, Ending, Flag};

/// What dry-run policies would have decided.
pub static DRY_RUN: Counters<4> = Counters::new(
    "ambit_policy_dry_run_total",
    "Decisions that a dry-run policy was asked about, and whether it matched.",
    ["policy", "namespace", "action", "matched"],
);

/// Counts and logs what a dry-run policy would have decided; it has no other effect.
pub fn dry_run(dry_run: &DryRun, workload: &WorkloadUid, connection: &ConnectionInfo) {
    let DryRun { policy, action, matched } = dry_run;
    let action = match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    };
    DRY_RUN.count([&policy.name, &policy.namespace, action, if *matched { "true" } else { "false" }]);
    tracing::info!(
        target: "policy",
        %policy,
        action,
        matched,
        %workload,
        src.addr = %connection.source.address,
        src.identity = connection.source.identity.as_ref().map(tracing::field::display),
        dst.addr = %connection.hbone_address.unwrap_or(connection.destination.address),
        path = connection.path.as_str(),
        "dry run"
    );
}

/// What `response_flags` says of a connection that was not made, for every reason. Istio has fewer flags than
/// Ambit has reasons.
fn flag(reason: Reason) -> Flag {
    match reason {
        // It was made, and carried bytes.
        Reason::Closed
        | Reason::Reset
        | Reason::Drained
        | Reason::Abandoned
        | Reason::DirectDisabled
        | Reason::TlsDemanded => Flag::None,
        Reason::PolicyDenied
        | Reason::PolicyNotAllowed
        | Reason::PolicyMissing
        | Reason::PlaintextRefused
        | Reason::WaypointRequired
        | Reason::FlowStale
        | Reason::TunnelRefused => Flag::Denied,
        Reason::CertificateMissing => Flag::IdentityFailed,
        Reason::TlsFailed | Reason::HandshakesExhausted => Flag::TlsFailed,
        Reason::TunnelFailed => Flag::TunnelFailed,
        Reason::RouteMissing => Flag::NoRoute,
        Reason::BackendInvalid => Flag::NoBackend,
        Reason::OutboundListenerMissing
        | Reason::HandoffsExhausted
        | Reason::KernelMemory
        | Reason::PodUnknown
        | Reason::HboneListenerMissing
        | Reason::PlaintextListenerMissing
        | Reason::HandoffLost
        | Reason::FlowMisdirected
        | Reason::FlowsExhausted
        | Reason::FlowTaken
        | Reason::FlowGone
        | Reason::RecordLost
        | Reason::LinkLost
        | Reason::LinkHandshakeForged
        | Reason::LinkPacketForged
        | Reason::LinkPacketHidden
        | Reason::LinkNeighbourForged
        | Reason::ProbesExhausted
        | Reason::DeviceBound
        | Reason::SourceUnknown
        | Reason::DestinationUnknown
        | Reason::ServicePortUnknown
        | Reason::NoEndpoint
        | Reason::WaypointUnavailable
        | Reason::WaypointNotProgrammed
        | Reason::NotFronted
        | Reason::WorkloadUnknown
        | Reason::ReservedPort
        | Reason::AddressMismatch
        | Reason::OriginalDestinationMissing
        | Reason::NotSynchronized
        | Reason::ConnectFailed
        | Reason::ConnectTimeout
        | Reason::PodConnectionsExhausted
        | Reason::PeerConnectionsExhausted
        | Reason::BadRequest => Flag::ConnectFailed,
    }
}

/// An orderly end.
pub fn orderly() -> Ending {
    Ending { reason: Reason::Closed, flag: flag(Reason::Closed), error: None, policy: None }
}

/// A connection that was made and then broke. `response_flags` says why a connection was not made, so it is
/// empty here.
pub fn broken(reason: Reason, error: impl Into<String>) -> Ending {
    Ending { flag: Flag::None, ..unmade(reason, error) }
}

/// A connection that could not be made.
pub fn unmade(reason: Reason, error: impl Into<String>) -> Ending {
    Ending { reason, flag: flag(reason), error: Some(error.into()), policy: None }
}

/// A connection beyond the descriptors that its workload may hold.
pub fn exhausted(uid: &WorkloadUid) -> Ending {
    let error = format!("{uid} has as many connections as the daemon can give it");
    unmade(Reason::PodConnectionsExhausted, error)
}

/// A connection that was decided against, or is no longer allowed.
pub fn denied(denial: &Denial) -> Ending {
    Ending { policy: denial.policy().cloned(), ..unmade(denial.reason(), denial.to_string()) }
}

#[cfg(test)]
mod tests;
