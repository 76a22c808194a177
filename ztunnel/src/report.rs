//! Why connections end, in the words of logs and metrics.

pub(crate) use ambit_core::chain;
use ambit_core::model::{Action, WorkloadUid};
use ambit_core::policy::DryRun;
use ambit_core::{Denial, Reason};
use ambit_daemon_kit::telemetry::connection::{Ending, Facts, Flag};
use ambit_daemon_kit::telemetry::instruments::Counters;

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
    Ending { reason: Reason::Closed, flag: flag(Reason::Closed), error: None, policy: None }
}

/// An ending that carried bytes, or was about to, and broke. `response_flags` says why one was not made, so
/// it says nothing here.
pub(crate) fn broken(reason: Reason, error: impl Into<String>) -> Ending {
    Ending { flag: Flag::None, ..unmade(reason, error) }
}

/// A connection that could not be made.
pub(crate) fn unmade(reason: Reason, error: impl Into<String>) -> Ending {
    Ending { reason, flag: flag(reason), error: Some(error.into()), policy: None }
}

/// A connection that its pod's share of the daemon has no room for.
pub(crate) fn exhausted(uid: &WorkloadUid) -> Ending {
    let error = format!("{uid} has as many connections as the daemon can give it");
    unmade(Reason::PodConnectionsExhausted, error)
}

/// A connection that was decided against, or is no longer allowed.
pub(crate) fn denied(denial: &Denial) -> Ending {
    Ending { policy: denial.policy().cloned(), ..unmade(denial.reason(), denial.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
