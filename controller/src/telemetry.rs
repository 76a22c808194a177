//! The controller's metrics: what they mean, when they are set, and `/metrics`.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use ambit_runtime::admin::{Response, Router};
use ambit_runtime::telemetry::metrics::Metrics;
use ambit_xds::server::Publisher;
use metrics::{counter, describe_counter, describe_gauge, gauge};

use crate::ca::Authority;
use crate::objects::catalog::{Problem, Verdict};
use crate::shared::Status;

/// Kinds that are always shown, so that a zero is a number and not an absence.
const KINDS: [&str; 6] =
    ["Namespace", "Pod", "Service", "WorkloadEntry", "AuthorizationPolicy", "PeerAuthentication"];
/// The kind of what could not be read far enough to know it.
const UNKNOWN: &str = "unknown";

/// Says what the metrics mean.
pub(crate) fn describe(authority: &Authority) {
    describe_gauge!("ambit_controller_objects", "Objects in force, by kind");
    describe_gauge!("ambit_controller_objects_rejected", "Objects rejected now, by kind");
    describe_gauge!("ambit_controller_files", "Object files in the folder");
    describe_gauge!("ambit_controller_folders_unreachable", "Folders that cannot be listed");
    describe_gauge!("ambit_controller_resources", "Resources held for clients, by type");
    describe_gauge!("ambit_controller_xds_clients", "Configuration streams open now");
    describe_counter!("ambit_controller_xds_resources_sent_total", "Resources sent to clients");
    describe_counter!("ambit_controller_xds_resources_removed_total", "Removals sent to clients");
    describe_counter!("ambit_controller_xds_acks_total", "Responses that clients took");
    describe_counter!("ambit_controller_xds_nacks_total", "Responses of which clients refused something");
    describe_counter!("ambit_controller_certificates_issued_total", "Certificates issued");
    describe_counter!("ambit_controller_certificates_refused_total", "Certificates refused, by reason");
    describe_gauge!("ambit_controller_root_expiry_timestamp_seconds", "When the root certificate ends");
    let expiry = authority.root_not_after().duration_since(UNIX_EPOCH).unwrap_or_default();
    gauge!("ambit_controller_root_expiry_timestamp_seconds").set(expiry.as_secs_f64());
    counter!("ambit_controller_certificates_issued_total").absolute(0);
}

/// Counts what is in force and what is rejected.
#[expect(clippy::cast_precision_loss, reason = "gauges are floating point, and no folder holds 2^52 objects")]
pub(crate) fn objects(status: &Status) {
    let mut rejected: BTreeMap<&'static str, usize> = BTreeMap::new();
    for kind in rejected_kinds(status) {
        *rejected.entry(kind).or_default() += 1;
    }
    for kind in KINDS {
        gauge!("ambit_controller_objects", "kind" => kind)
            .set(status.objects.get(kind).copied().unwrap_or_default() as f64);
    }
    for kind in KINDS.into_iter().chain([UNKNOWN]) {
        gauge!("ambit_controller_objects_rejected", "kind" => kind)
            .set(rejected.get(kind).copied().unwrap_or_default() as f64);
    }
    gauge!("ambit_controller_files").set(status.files as f64);
    gauge!("ambit_controller_folders_unreachable").set(status.unreachable.len() as f64);
}

/// The kind of every rejected document or object: several mistakes in one count once.
fn rejected_kinds(status: &Status) -> Vec<&'static str> {
    let mut seen: Vec<(&str, Option<&str>, Option<&str>)> = Vec::new();
    let mut kinds = Vec::new();
    for problem in status.problems.iter().filter(|problem| problem.verdict != Verdict::Ignored) {
        let Problem { file, place, object, kind, .. } = problem;
        let name = (&**file, place.as_deref(), object.as_deref());
        // Problems are sorted by file and place.
        if seen.last() != Some(&name) {
            seen.push(name);
            kinds.push(if kind.is_empty() { UNKNOWN } else { kind });
        }
    }
    let refused = status.conditions.iter().filter(|condition| !condition.accepted);
    let refused: std::collections::BTreeSet<_> = refused.map(|condition| &condition.object).collect();
    kinds.extend(refused.into_iter().map(crate::objects::catalog::kind_name));
    kinds
}

/// `/metrics`, with what the publisher counts.
pub(crate) fn metrics_routes(metrics: &Metrics, publisher: &Publisher) -> Router {
    let (metrics, publisher) = (metrics.clone(), publisher.clone());
    Router::new().get("/metrics", move |_| {
        published(&publisher);
        let mut answer = Response::text(metrics.render());
        answer.content_type = "text/plain; version=0.0.4; charset=utf-8";
        std::future::ready(answer)
    })
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point, and no mesh has 2^52 resources")]
fn published(publisher: &Publisher) {
    let stats = publisher.stats();
    gauge!("ambit_controller_resources", "type" => "Address").set(stats.addresses as f64);
    gauge!("ambit_controller_resources", "type" => "Authorization").set(stats.authorizations as f64);
    gauge!("ambit_controller_xds_clients").set(stats.clients as f64);
    counter!("ambit_controller_xds_resources_sent_total").absolute(stats.sent);
    counter!("ambit_controller_xds_resources_removed_total").absolute(stats.removed);
    counter!("ambit_controller_xds_acks_total").absolute(stats.acks);
    counter!("ambit_controller_xds_nacks_total").absolute(stats.nacks);
}
