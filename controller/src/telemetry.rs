//! The controller's metrics: their descriptions, and the values that are read at each scrape.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ambit_core::derive::Kind;
use ambit_daemon_kit::telemetry::exposition::{Exposition, Family};
use ambit_daemon_kit::telemetry::instruments::{Counter, Counters};
use ambit_daemon_kit::telemetry::metrics::Metrics;
use ambit_xds::server::Publisher;

use crate::ca::Authorities;
use crate::objects::catalog::{Problem, Verdict};
use crate::serving::Certificate;
use crate::shared::{Shared, Status};

/// The kind of objects that could not be parsed far enough to know it.
const UNKNOWN: &str = "unknown";

pub(crate) static CERTIFICATES_ISSUED: Counter =
    Counter::new("ambit_controller_certificates_issued_total", "Certificates issued.");
pub(crate) static CERTIFICATES_REFUSED: Counters<1> = Counters::new(
    "ambit_controller_certificates_refused_total",
    "Certificates refused, by reason.",
    ["reason"],
);

pub(crate) static TOKENS_REFUSED: Counters<1> =
    Counters::new("ambit_controller_tokens_refused_total", "Tokens refused, by reason.", ["reason"]);

pub(crate) static CAS_REPLACED: Counter = Counter::new(
    "ambit_controller_ca_replaced_total",
    "CAs replaced without a transition because they could no longer sign.",
);

const OBJECTS: Family = Family::gauge("ambit_controller_objects", "Objects in force, by kind.");
const REJECTED: Family = Family::gauge("ambit_controller_objects_rejected", "Objects rejected now, by kind.");
const FILES: Family = Family::gauge("ambit_controller_files", "Object files in the folder.");
const UNREACHABLE: Family =
    Family::gauge("ambit_controller_folders_unreachable", "Folders that cannot be listed.");
const RESOURCES: Family = Family::gauge("ambit_controller_resources", "Resources held for clients, by type.");
const CLIENTS: Family = Family::gauge("ambit_controller_xds_clients", "Configuration streams open now.");
const SENT: Family =
    Family::counter("ambit_controller_xds_resources_sent_total", "Resources sent to clients.");
const REMOVED: Family =
    Family::counter("ambit_controller_xds_resources_removed_total", "Removals sent to clients.");
const ACKS: Family = Family::counter("ambit_controller_xds_acks_total", "Responses that clients accepted.");
const NACKS: Family =
    Family::counter("ambit_controller_xds_nacks_total", "Responses that clients rejected in part.");
const WAITING: Family = Family::gauge(
    "ambit_controller_xds_large_requests_waiting",
    "Streams that wait for their turn to send a large request.",
);
const TOO_SLOW: Family = Family::counter(
    "ambit_controller_xds_large_requests_refused_total",
    "Streams ended because their large request took too long.",
);
const ROOT_EXPIRY: Family = Family::gauge(
    "ambit_controller_root_expiry_timestamp_seconds",
    "When the root certificate expires, in seconds since 1970.",
);
const INTERMEDIATE_EXPIRY: Family = Family::gauge(
    "ambit_controller_intermediate_expiry_timestamp_seconds",
    "When the first of the certificates that sign workloads' expires, in seconds since 1970.",
);
const SERVING_EXPIRY: Family = Family::gauge(
    "ambit_controller_serving_expiry_timestamp_seconds",
    "When the controller's own certificate expires, in seconds since 1970.",
);

/// Adds the metrics of objects and clients.
pub(crate) fn show(metrics: &Metrics, shared: &Arc<Shared>, publisher: &Publisher) {
    let (shared, publisher) = (shared.clone(), publisher.clone());
    metrics.collect(move |all| {
        objects(&shared.status.load(), all);
        published(&publisher, all);
        CERTIFICATES_ISSUED.show(all);
        CERTIFICATES_REFUSED.show(all);
        TOKENS_REFUSED.show(all);
    });
}

/// Adds the ends of the CA's certificates and of the controller's own.
pub(crate) fn show_expiry(metrics: &Metrics, authorities: Authorities, serving: Arc<Certificate>) {
    let seconds = |end: SystemTime| end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    metrics.collect(move |all| {
        let workloads = authorities.borrow().workloads.clone();
        all.single(&ROOT_EXPIRY, seconds(workloads.root_not_after()));
        all.single(&INTERMEDIATE_EXPIRY, seconds(workloads.not_after()));
        all.single(&SERVING_EXPIRY, seconds(serving.not_after()));
        CAS_REPLACED.show(all);
    });
}

/// Objects in force and rejected ones. Every kind is shown, also with zero.
fn objects(status: &Status, all: &mut Exposition) {
    let mut rejected: BTreeMap<&'static str, usize> = BTreeMap::new();
    for kind in rejected_kinds(status) {
        *rejected.entry(kind).or_default() += 1;
    }
    let mut objects = all.family(&OBJECTS);
    for kind in kinds() {
        objects.sample(&[("kind", kind)], status.objects.get(kind).copied().unwrap_or_default());
    }
    let mut refused = all.family(&REJECTED);
    for kind in kinds().chain([UNKNOWN]) {
        refused.sample(&[("kind", kind)], rejected.get(kind).copied().unwrap_or_default());
    }
    all.single(&FILES, status.files);
    all.single(&UNREACHABLE, status.unreachable.len());
}

fn kinds() -> impl Iterator<Item = &'static str> {
    Kind::ALL.iter().copied().map(Kind::name)
}

/// The kind of every rejected document or object; several mistakes in one count once.
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

fn published(publisher: &Publisher, all: &mut Exposition) {
    let stats = publisher.stats();
    all.family(&RESOURCES)
        .sample(&[("type", "Address")], stats.addresses)
        .sample(&[("type", "Authorization")], stats.authorizations);
    all.single(&CLIENTS, stats.clients);
    all.single(&SENT, stats.sent);
    all.single(&REMOVED, stats.removed);
    all.single(&ACKS, stats.acks);
    all.single(&NACKS, stats.nacks);
    all.single(&WAITING, stats.waiting);
    all.single(&TOO_SLOW, stats.refused);
}

#[cfg(test)]
mod tests;
