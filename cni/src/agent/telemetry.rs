//! The agent's metrics.

use std::sync::Arc;

use ambit_daemon_kit::telemetry::exposition::Family;
use ambit_daemon_kit::telemetry::instruments::{Counter, Counters};
use ambit_daemon_kit::telemetry::metrics::Metrics;
use parking_lot::Mutex;

use super::state::Counts;
use super::step::Outcome;

pub(crate) static STEPS: Counters<1> =
    Counters::new("ambit_node_steps_total", "Steps taken for pods, by what became of them.", ["outcome"]);
pub(crate) static API_ERRORS: Counter =
    Counter::new("ambit_node_api_errors_total", "Requests and watches that the API server did not serve.");
pub(crate) static REPAIRS: Counters<1> =
    Counters::new("ambit_node_repairs_total", "Parts of the CNI plugin's installation written.", ["part"]);
pub(crate) static INSTALL_ERRORS: Counter =
    Counter::new("ambit_node_install_errors_total", "Passes in which the CNI plugin could not be installed.");

const PODS: Family = Family::gauge("ambit_node_pods", "Pods of this node, by state.");
const CREDENTIAL: Family = Family::gauge(
    "ambit_node_credential_expiry_timestamp_seconds",
    "When the CNI plugin's credential expires, in seconds since 1970; 0 before there is one.",
);

/// Values that are read at each scrape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    pub(crate) counts: Arc<Mutex<Counts>>,
    /// Seconds since 1970; 0 before there is a credential.
    pub(crate) credential_expiry: Arc<Mutex<f64>>,
}

/// Adds the agent's metrics.
pub(crate) fn show(metrics: &Metrics, shown: Shown) {
    metrics.collect(move |all| {
        let counts = *shown.counts.lock();
        all.family(&PODS)
            .sample(&[("state", "all")], counts.pods)
            .sample(&[("state", "desired")], counts.desired)
            .sample(&[("state", "enrolled")], counts.enrolled)
            .sample(&[("state", "not_captured")], counts.not_captured);
        all.single(&CREDENTIAL, *shown.credential_expiry.lock());
        STEPS.show(all);
        API_ERRORS.show(all);
        REPAIRS.show(all);
        INSTALL_ERRORS.show(all);
    });
}

/// The label value of an outcome.
pub(crate) fn outcome(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Enrolled { .. } => "enrolled",
        Outcome::NotYet => "not_yet",
        Outcome::Kept => "kept",
        Outcome::Released => "released",
        Outcome::Redirected { on: true, .. } => "annotated",
        Outcome::Redirected { on: false, .. } => "unannotated",
        Outcome::Marked { .. } => "marked",
        Outcome::Failed => "failed",
    }
}
