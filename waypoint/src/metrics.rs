//! All metrics of the waypoint: [`show`].

use std::sync::Arc;

use ambit_daemon_kit::telemetry::exposition::Family;
use ambit_daemon_kit::telemetry::instruments::{Counter, Counters};
use ambit_daemon_kit::telemetry::metrics::Metrics;
use ambit_xds::client::Status;
use tokio::sync::watch;

use crate::report;
use crate::worker::Thread;

/// Errors of `accept()`.
pub(crate) static ACCEPT_ERRORS: Counter = Counter::new(
    "ambit_waypoint_accept_errors_total",
    "Errors of accepting that concern the listener, not a single connection.",
);

/// Requests that [`crate::framing`] refuses. They have no place in a request metric: nobody knows what they
/// are.
pub(crate) static AMBIGUOUS: Counter = Counter::new(
    "ambit_waypoint_ambiguous_requests_total",
    "HTTP/1 requests that were refused because they can be read in more than one way, or in none.",
);

/// Copies of requests.
pub(crate) static MIRRORED: Counters<1> = Counters::new(
    "ambit_waypoint_mirrored_requests_total",
    "Copies of requests, by outcome: sent, failed, overflow (too many at a time), invalid (no such backend).",
    ["outcome"],
);

const UPSTREAM: Family =
    Family::gauge("ambit_waypoint_upstream_connections", "HTTP connections to endpoints that are kept.");
const POOL: Family =
    Family::gauge("ambit_pool_connections", "HBONE connections that are kept for new tunnels.");

/// Has all metrics shown at each scrape.
pub fn show(threads: &[Thread], xds: watch::Receiver<Status>, exposed: &Metrics) {
    let workers: Vec<_> = threads.iter().map(|thread| Arc::clone(&thread.worker)).collect();
    exposed.collect(move |all| {
        report::show(all);
        ambit_proxy::report::show(all);
        ambit_proxy::metrics::show(&xds.borrow(), all);
        ACCEPT_ERRORS.show(all);
        MIRRORED.show(all);
        AMBIGUOUS.show(all);
        all.single(&UPSTREAM, workers.iter().map(|worker| worker.upstreams.count()).sum::<usize>());
        all.single(&POOL, workers.iter().map(|worker| worker.pool.connections()).sum::<usize>());
        if let Some(worker) = workers.first() {
            worker.waypoint.proxy.endpoints.show(all);
        }
    });
}
