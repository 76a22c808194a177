//! Metrics of the proxy itself: how long connecting takes, and what xDS has brought ([`show`]). Those of
//! connections are in [`report`](crate::report), of outlier detection in [`endpoints`](crate::endpoints).

use std::time::UNIX_EPOCH;

use ambit_daemon_kit::telemetry::exposition::{Exposition, Family};
use ambit_daemon_kit::telemetry::instruments::Durations;
use ambit_xds::client::Status;

/// From the decision to the open tunnel, or to the plain connection: what an application's first byte waits
/// for.
pub static CONNECT: Durations = Durations::new(
    "ambit_connect_duration_seconds",
    "From the decision about an outbound connection to its being open, by path.",
    "path",
    &["tunnel", "plaintext", "waypoint"],
);
/// TLS handshakes of HBONE. With TLS 1.3 the client's side completes one round trip before the server's.
pub static HANDSHAKE: Durations = Durations::new(
    "ambit_tls_handshake_duration_seconds",
    "TLS handshakes with other daemons that succeeded, by this daemon's role.",
    "role",
    &["client", "server"],
);
/// Connecting to applications.
pub static APPLICATION_CONNECT: Durations = Durations::new(
    "ambit_application_connect_duration_seconds",
    "Connecting to this node's applications for connections that policy let in.",
    "direction",
    &["inbound"],
);

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

/// Writes them.
pub fn show(status: &Status, all: &mut Exposition) {
    for durations in [&CONNECT, &HANDSHAKE, &APPLICATION_CONNECT] {
        durations.show(all);
    }
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
