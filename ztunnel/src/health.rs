//! What the daemon's metrics say of itself: read when it is scraped, from where it is known.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use ambit_daemon_kit::telemetry::connection;
use ambit_daemon_kit::telemetry::exposition::{Exposition, Family};
use ambit_daemon_kit::telemetry::instruments::{Counters, Durations};
use ambit_daemon_kit::telemetry::metrics::Metrics;
use ambit_loader::KernelReason;
use ambit_xds::client::Status;
use tokio::sync::watch;

use crate::daemon::Node;
use crate::{reason, report};

/// From the decision to the open tunnel, or to the plain connection: what an application's first byte waits
/// for.
pub(crate) static CONNECT: Durations = Durations::new(
    "ambit_connect_duration_seconds",
    "From the decision about an outbound connection to its being open, by path.",
    "path",
    &["tunnel", "plaintext", "waypoint"],
);
/// TLS between daemons. With TLS 1.3 the client's side is over one round trip before the server's.
pub(crate) static HANDSHAKE: Durations = Durations::new(
    "ambit_tls_handshake_duration_seconds",
    "TLS handshakes with other daemons that succeeded, by this daemon's role.",
    "role",
    &["client", "server"],
);
pub(crate) static APPLICATION_CONNECT: Durations = Durations::new(
    "ambit_application_connect_duration_seconds",
    "Connecting to this node's applications for connections that policy let in.",
    "direction",
    &["inbound"],
);
pub(crate) static ACCEPT_ERRORS: Counters<1> = Counters::new(
    "ambit_accept_errors_total",
    "Errors of accepting that concern a listener, not a single connection, by listener.",
    ["listener"],
);

const KERNEL_REFUSALS: Family = Family::counter(
    "ambit_kernel_refusals_total",
    "Connections that the kernel programs refused, by reason.",
);
const RECORDS_LOST: Family = Family::counter(
    "ambit_kernel_records_lost_total",
    "Records of connections that found no room because the daemon did not read them fast enough.",
);
const PODS: Family = Family::gauge("ambit_pods_enrolled", "Pods that this daemon serves.");
const POOL: Family =
    Family::gauge("ambit_pool_connections", "HBONE connections that are kept for new tunnels.");
const SYNCED: Family =
    Family::gauge("ambit_xds_synchronized", "1 once a whole configuration has come, now or before.");
const CONNECTED: Family =
    Family::gauge("ambit_xds_connected", "1 while there is a stream on which the controller has answered.");
const LAST_UPDATE: Family = Family::gauge(
    "ambit_xds_last_update_timestamp_seconds",
    "When the controller last sent something, in seconds since 1970.",
);
const RESPONSES: Family = Family::counter(
    "ambit_xds_responses_total",
    "Responses of the controller, by what they were answered with.",
);
const RESOURCES: Family = Family::gauge("ambit_xds_resources", "Resources in force, by type.");
const REJECTED: Family = Family::counter(
    "ambit_xds_resources_rejected_total",
    "Resources that were refused, and stay as they were.",
);
const LOST: Family = Family::counter(
    "ambit_xds_connections_lost_total",
    "Connections to the controller that failed or ended.",
);

/// Adds all of the node's metrics.
pub(crate) fn show(node: &Arc<Node>, xds: watch::Receiver<Status>, metrics: &Metrics) {
    let shown = node.clone();
    metrics.collect(move |all| {
        // What open connections carried until now.
        shown.connections.progress();
        shown.count_kernel_connections();
        connection::show(all);
        report::DRY_RUN.show(all);
        for durations in [&CONNECT, &HANDSHAKE, &APPLICATION_CONNECT] {
            durations.show(all);
        }
        ACCEPT_ERRORS.show(all);
        all.single(&PODS, shown.pods.all().len());
        all.single(&POOL, shown.pool.connections());
        shown.certificates.show(all);
        configuration(&xds.borrow(), all);
        shown.endpoints.show(all);
        kernel(&shown, all);
    });
}

fn configuration(status: &Status, all: &mut Exposition) {
    all.single(&CONNECTED, status.connected);
    all.single(&SYNCED, status.synced);
    let mut last = all.family(&LAST_UPDATE);
    if let Some(time) = status.updated {
        last.sample(&[], time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }
    all.family(&RESPONSES)
        .sample(&[("answer", "ack")], status.acknowledged)
        .sample(&[("answer", "nack")], status.refused);
    let mut resources = all.family(&RESOURCES);
    for (kind, held) in &status.types {
        resources.sample(&[("type", kind)], held.resources);
    }
    all.single(&REJECTED, status.rejected);
    all.single(&LOST, status.lost);
}

/// Connections that the kernel's programs refused may never reach a connection's report: their counters are
/// read.
fn kernel(node: &Node, all: &mut Exposition) {
    let mut refusals = all.family(&KERNEL_REFUSALS);
    let counters = node.kernel.dataplane().counters().unwrap_or_else(|error| {
        tracing::warn!(error = report::chain(&error), "reading what the kernel refused");
        Vec::default()
    });
    let mut lost = 0;
    for (reason, count) in counters.into_iter().filter(|(_, count)| *count > 0) {
        if reason == KernelReason::RecordLost {
            lost = count;
        } else {
            refusals.sample(&[("reason", reason::from_kernel(reason).name())], count);
        }
    }
    all.single(&RECORDS_LOST, lost);
}
