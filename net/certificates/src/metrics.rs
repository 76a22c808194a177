//! What is counted about certificates, and how old those held are.

use std::time::UNIX_EPOCH;

use ambit_daemon_kit::telemetry::exposition::{Exposition, Family};
use ambit_daemon_kit::telemetry::instruments::{Counter, Counters};

use crate::error::Error;
use crate::store::Store;

static ISSUED: Counter = Counter::new("ambit_certificates_issued_total", "Certificates got from the CA.");
static RENEWED: Counter = Counter::new(
    "ambit_certificate_renewals_total",
    "Certificates got from the CA in the place of one that was held.",
);
static FAILURES: Counters<1> = Counters::new(
    "ambit_certificate_failures_total",
    "Attempts to get a certificate that failed, by reason.",
    ["reason"],
);

const IDENTITIES: Family =
    Family::gauge("ambit_certificate_identities", "Identities that this daemon keeps certificates for.");
const EARLIEST_EXPIRY: Family = Family::gauge(
    "ambit_certificate_earliest_expiry_timestamp_seconds",
    "When the first of the certificates held expires, in seconds since 1970.",
);
const EXPIRY: Family = Family::gauge(
    "ambit_certificate_expiry_timestamp_seconds",
    "When an identity's certificate expires, in seconds since 1970.",
);
const AGE: Family =
    Family::gauge("ambit_certificate_age_seconds", "How long ago an identity's certificate became valid.");

pub(crate) fn issued(renewed: bool) {
    ISSUED.count();
    if renewed {
        RENEWED.count();
    }
}

pub(crate) fn failed(error: &Error) {
    let reason = match error {
        Error::Sign { .. } => "signer",
        Error::SignTimeout { .. } => "timeout",
        Error::Refused { .. } => "refused",
        _ => "other",
    };
    FAILURES.count([reason]);
}

/// Writes the metrics of all identities.
pub(crate) fn show(store: &Store, all: &mut Exposition) {
    ISSUED.show(all);
    RENEWED.show(all);
    FAILURES.show(all);
    let now = (store.clock)();
    let mut held: Vec<_> = {
        let entries = store.entries.read();
        all.single(&IDENTITIES, entries.len());
        let held = entries.values().filter_map(|kept| {
            let certificate = kept.entry.certificate.borrow().clone()?;
            let expiry = certificate.not_after.duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
            let age = now.duration_since(certificate.not_before).unwrap_or_default().as_secs_f64();
            Some((kept.entry.identity.to_string(), expiry, age))
        });
        held.collect()
    };
    held.sort_by(|a, b| a.0.cmp(&b.0));
    let mut earliest = all.family(&EARLIEST_EXPIRY);
    if let Some(first) = held.iter().map(|(_, expiry, _)| *expiry).min_by(f64::total_cmp) {
        earliest.sample(&[], first);
    }
    let mut expiries = all.family(&EXPIRY);
    for (identity, expiry, _) in &held {
        expiries.sample(&[("identity", identity)], *expiry);
    }
    let mut ages = all.family(&AGE);
    for (identity, _, age) in &held {
        ages.sample(&[("identity", identity)], *age);
    }
}
