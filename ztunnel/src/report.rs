//! Why connections end, in the words of logs and metrics.

use ambit_core::Denial;
pub(crate) use ambit_core::chain;
use ambit_core::model::{Action, WorkloadUid};
use ambit_core::policy::DryRun;
use ambit_daemon_kit::telemetry::connection::{Ending, Facts, Flag};
use ambit_daemon_kit::telemetry::instruments::Counters;
use ambit_loader::Reason;

/// What dry-run policies would have said.
pub(crate) static DRY_RUN: Counters<4> = Counters::new(
    "ambit_policy_dry_run_total",
    "Decisions that a dry-run policy was asked about, and whether it matched.",
    ["policy", "namespace", "action", "matched"],
);

/// Counts and logs what a dry-run policy would have said; nothing else comes of it.
pub(crate) fn dry_run(dry_run: &DryRun, workload: &WorkloadUid, facts: &Facts) {
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
        src.addr = %facts.source.address,
        src.identity = facts.source.identity.as_ref().map(tracing::field::display),
        dst.addr = %facts.hbone_address.unwrap_or(facts.destination.address),
        path = facts.path.as_str(),
        "dry run"
    );
}

/// What `response_flags` says of a connection that was not made, for every reason. Istio has fewer words than
/// we have.
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
        | Reason::FlowStale
        | Reason::TunnelRefused => Flag::Denied,
        Reason::CertificateMissing => Flag::IdentityFailed,
        Reason::TlsFailed | Reason::HandshakesExhausted => Flag::TlsFailed,
        Reason::TunnelFailed => Flag::TunnelFailed,
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
        | Reason::SourceUnknown
        | Reason::DestinationUnknown
        | Reason::ServicePortUnknown
        | Reason::NoEndpoint
        | Reason::WaypointUnsupported
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

/// An ending nobody need look at.
pub(crate) fn orderly() -> Ending {
    Ending { reason: Reason::Closed.name(), flag: flag(Reason::Closed), error: None, policy: None }
}

/// An ending that carried bytes, or was about to, and broke. `response_flags` says why one was not made, so
/// it says nothing here.
pub(crate) fn broken(reason: Reason, error: impl Into<String>) -> Ending {
    Ending { flag: Flag::None, ..unmade(reason, error) }
}

/// A connection that could not be made.
pub(crate) fn unmade(reason: Reason, error: impl Into<String>) -> Ending {
    Ending { reason: reason.name(), flag: flag(reason), error: Some(error.into()), policy: None }
}

/// A connection that its pod's share of the daemon has no room for.
pub(crate) fn exhausted(uid: &WorkloadUid) -> Ending {
    let error = format!("{uid} has as many connections as the daemon can give it");
    unmade(Reason::PodConnectionsExhausted, error)
}

/// A connection that was decided against, or is no longer allowed.
pub(crate) fn denied(denial: &Denial) -> Ending {
    Ending { policy: denial.policy().cloned(), ..unmade(reason(denial), denial.to_string()) }
}

/// The core's denials are reasons by the same names; a test holds the two lists together.
fn reason(denial: &Denial) -> Reason {
    let name = denial.reason();
    Reason::ALL.iter().copied().find(|reason| reason.name() == name).unwrap_or(Reason::Abandoned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_denial_is_a_reason() {
        for name in Denial::REASONS {
            assert!(Reason::ALL.iter().any(|reason| reason.name() == name), "{name}");
        }
    }

    #[test]
    fn only_what_was_made_has_no_flag() {
        let without: Vec<_> = Reason::ALL.iter().filter(|reason| flag(**reason) == Flag::None).collect();
        let made = [
            Reason::Reset,
            Reason::Drained,
            Reason::Closed,
            Reason::Abandoned,
            Reason::DirectDisabled,
            Reason::TlsDemanded,
        ];
        assert_eq!(without, made.iter().collect::<Vec<_>>());
    }
}
