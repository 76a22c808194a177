//! What the daemon's metrics say of itself: read when it is scraped, from where it is known.

use std::sync::Arc;

use ambit_runtime::telemetry::connection;
use ambit_runtime::telemetry::exposition::{Exposition, Family};
use ambit_runtime::telemetry::metrics::Metrics;

use crate::daemon::Node;
use crate::report::chain;

/// What the kernel's programs refused, by reason, since the instance was attached.
const KERNEL_REFUSALS: Family = Family::counter(
    "ambit_kernel_refusals_total",
    "Connections that the kernel programs refused, by reason.",
);

/// Adds all of the node's metrics.
pub(crate) fn show(node: &Arc<Node>, metrics: &Metrics) {
    let shown = node.clone();
    metrics.collect(move |all| {
        // What open connections carried until now.
        shown.connections.progress();
        connection::show(all);
        shown.certificates.show(all);
        kernel(&shown, all);
    });
}

/// Connections that the kernel's programs refused may never reach a connection's report: their counters are read.
fn kernel(node: &Node, all: &mut Exposition) {
    let mut refusals = all.family(&KERNEL_REFUSALS);
    match node.kernel.dataplane().counters() {
        Ok(counters) => {
            for (reason, count) in counters.into_iter().filter(|(_, count)| *count > 0) {
                refusals.sample(&[("reason", reason.name())], count);
            }
        }
        Err(error) => tracing::warn!(error = chain(&error), "reading what the kernel refused"),
    }
}
