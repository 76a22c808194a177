//! What is counted about certificates. No identity is a label: a daemon's identities come and go.

use std::time::UNIX_EPOCH;

use super::Inner;
use crate::Error;

const ISSUED: &str = "ambit_certificates_issued_total";
const FAILURES: &str = "ambit_certificate_failures_total";
const IDENTITIES: &str = "ambit_certificate_identities";
const EARLIEST_EXPIRY: &str = "ambit_certificate_earliest_expiry_timestamp_seconds";

pub(crate) fn describe() {
    metrics::describe_counter!(ISSUED, "Certificates got from the CA");
    metrics::describe_counter!(FAILURES, "Attempts to get a certificate that failed, by reason");
    metrics::describe_gauge!(IDENTITIES, "Identities of this node's workloads");
    metrics::describe_gauge!(
        EARLIEST_EXPIRY,
        "When the first of the certificates held expires, in seconds since 1970"
    );
}

pub(super) fn issued(inner: &Inner) {
    metrics::counter!(ISSUED).increment(1);
    let entries = inner.entries.read();
    let expiries = entries
        .values()
        .filter_map(|kept| kept.entry.certificate.borrow().as_ref().map(|certificate| certificate.not_after));
    if let Some(seconds) = expiries.min().and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
        metrics::gauge!(EARLIEST_EXPIRY).set(seconds.as_secs_f64());
    }
}

pub(super) fn failed(error: &Error) {
    let reason = match error {
        Error::Sign { .. } => "signer",
        Error::SignTimeout { .. } => "timeout",
        Error::Refused { .. } => "refused",
        _ => "other",
    };
    metrics::counter!(FAILURES, "reason" => reason).increment(1);
}

pub(super) fn identities(count: usize) {
    metrics::gauge!(IDENTITIES).set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}
