//! The task that keeps one identity's certificate fresh: [`maintain`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_hbone::tls::WorkloadCertificate;

use crate::clock::{Clock, rfc3339};
use crate::entry::{Attempt, Entry};
use crate::error::Error;
use crate::issue::{self, Issued};
use crate::metrics;
use crate::schedule::{Backoff, attempt_timeout, renewal};
use crate::store::Store;

/// Sleeping is cut into slices, so that a clock that was set is noticed.
const LONGEST_SLEEP: Duration = Duration::from_mins(1);

/// Keeps the entry's certificate fresh until it is forgotten, or there is no lease on it when it would be
/// renewed.
pub(crate) async fn maintain(store: Arc<Store>, entry: Arc<Entry>) {
    let forgotten = entry.forgotten.clone();
    tokio::select! {
        () = forgotten.cancelled() => {}
        () = renew_forever(&store, &entry) => {}
    }
    let error = Error::Forgotten { identity: entry.identity.clone() };
    entry.certificate.send_replace(None);
    entry.attempt.send_replace(Attempt::Failed(Arc::new(error)));
}

async fn renew_forever(store: &Store, entry: &Arc<Entry>) {
    let mut lifetime = store.ttl;
    let mut backoff = Backoff::new(lifetime);
    loop {
        let now = (store.clock)();
        let issued = attempt(store, entry, lifetime).await;
        let next = match issued.and_then(|issued| publish(store, entry, issued)) {
            Ok(not_after) => {
                let now = (store.clock)();
                lifetime = not_after.duration_since(now).unwrap_or_default();
                backoff = Backoff::new(lifetime);
                now + renewal(lifetime, chance())
            }
            Err(error) => {
                let wait = backoff.wait(chance());
                report_failure(store, entry, &error, wait);
                entry.attempt.send_replace(Attempt::Failed(Arc::new(error)));
                (store.clock)().max(now) + wait
            }
        };
        sleep_until(&store.clock, next).await;
        if store.remove_unwanted(entry) {
            return;
        }
        entry.attempt.send_replace(Attempt::Underway);
    }
}

async fn attempt(store: &Store, entry: &Entry, lifetime: Duration) -> Result<Issued, Error> {
    let identity = &entry.identity;
    // Never closed while `inner` lives.
    let _turn = store.turns.acquire().await;
    let timeout = attempt_timeout(lifetime);
    issue::issue(&*store.signer, identity, store.ttl, timeout, &store.clock).await
}

/// Publishes a certificate, with the roots that are trusted now. Returns when it expires.
fn publish(store: &Store, entry: &Entry, issued: Issued) -> Result<SystemTime, Error> {
    let Issued { certificate, root } = issued;
    let not_after = certificate.not_after;
    tracing::debug!(identity = %entry.identity, not_after = rfc3339(not_after), "certificate issued");
    let before = entry.certificate.borrow().is_some();
    let roots = store.roots.read().clone();
    let trusted = issue::store(roots.iter().chain([&root])).map_err(|source| Error::TrustRoots { source })?;
    let certificate = WorkloadCertificate { roots: Arc::new(trusted), ..certificate };
    *entry.root.lock() = Some(root);
    entry.certificate.send_replace(Some(Arc::new(certificate)));
    // Roots that changed meanwhile may have found the earlier certificate.
    let now = store.roots.read().clone();
    if now != roots {
        entry.trust(&now)?;
    }
    entry.attempt.send_replace(Attempt::Done);
    metrics::issued(before);
    // Fails only without receivers.
    let _ = store.changes.send(entry.identity.clone());
    Ok(not_after)
}

fn report_failure(store: &Store, entry: &Entry, error: &Error, wait: Duration) {
    metrics::failed(error);
    let now = (store.clock)();
    let left = entry
        .certificate
        .borrow()
        .as_ref()
        .map(|certificate| certificate.not_after.duration_since(now).unwrap_or_default().as_secs());
    tracing::warn!(
        identity = %entry.identity,
        error = error.chain(),
        retry_in = format!("{:.1}s", wait.as_secs_f32()),
        valid_for_seconds = left,
        "failed to renew certificate"
    );
}

async fn sleep_until(clock: &Clock, time: SystemTime) {
    while let Ok(left) = time.duration_since(clock()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
    }
}

fn chance() -> f64 {
    rand::random()
}
