//! One identity's certificate over time: the state that handshakes read, and the task that keeps it fresh.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::model::Identity;
use ambit_hbone::tls::WorkloadCertificate;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::schedule::{Backoff, attempt_timeout, renewal};
use super::{Inner, issue, metrics};
use crate::Error;

/// Sleeping is cut into slices, so that a clock that was set is noticed.
const LONGEST_SLEEP: Duration = Duration::from_mins(1);

/// What is known of one identity.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) identity: Identity,
    /// The newest certificate, expired or not.
    pub(super) certificate: watch::Sender<Option<Arc<WorkloadCertificate>>>,
    pub(super) attempt: watch::Sender<Attempt>,
    pub(super) forgotten: CancellationToken,
}

/// How the last attempt went.
#[derive(Clone, Debug)]
pub(super) enum Attempt {
    Underway,
    Done,
    Failed(Arc<Error>),
}

impl Entry {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity,
            certificate: watch::Sender::new(None),
            attempt: watch::Sender::new(Attempt::Underway),
            forgotten: CancellationToken::new(),
        }
    }

    /// The certificate, unless there is none or it has expired.
    pub(super) fn current(&self, now: SystemTime) -> Option<Arc<WorkloadCertificate>> {
        self.certificate.borrow().as_ref().filter(|certificate| now < certificate.not_after).cloned()
    }

    /// The certificate once there is one, or why the attempt under way or the last one failed.
    pub(super) async fn wait(&self, clock: &super::Clock) -> Result<Arc<WorkloadCertificate>, Arc<Error>> {
        let mut attempt = self.attempt.subscribe();
        loop {
            // In this order: a certificate is stored before its attempt is called done.
            let last = attempt.borrow_and_update().clone();
            if let Some(certificate) = self.current(clock()) {
                return Ok(certificate);
            }
            if let Attempt::Failed(error) = last {
                return Err(error);
            }
            if attempt.changed().await.is_err() {
                return Err(Arc::new(Error::Forgotten { identity: self.identity.clone() }));
            }
        }
    }
}

/// Keeps the entry's certificate fresh until it is forgotten, or nobody holds a lease when it would be renewed.
pub(super) async fn maintain(inner: Arc<Inner>, entry: Arc<Entry>) {
    let forgotten = entry.forgotten.clone();
    tokio::select! {
        () = forgotten.cancelled() => {}
        () = renew_for_ever(&inner, &entry) => {}
    }
    let error = Error::Forgotten { identity: entry.identity.clone() };
    entry.certificate.send_replace(None);
    entry.attempt.send_replace(Attempt::Failed(Arc::new(error)));
}

async fn renew_for_ever(inner: &Inner, entry: &Arc<Entry>) {
    let mut lifetime = inner.ttl;
    let mut backoff = Backoff::new(lifetime);
    loop {
        let now = (inner.clock)();
        let next = match attempt(inner, entry, lifetime).await {
            Ok(certificate) => {
                let now = (inner.clock)();
                lifetime = certificate.not_after.duration_since(now).unwrap_or_default();
                backoff = Backoff::new(lifetime);
                publish(inner, entry, certificate);
                now + renewal(lifetime, dice())
            }
            Err(error) => {
                let wait = backoff.wait(dice());
                complain(inner, entry, &error, wait);
                entry.attempt.send_replace(Attempt::Failed(Arc::new(error)));
                (inner.clock)().max(now) + wait
            }
        };
        sleep_until(&inner.clock, next).await;
        if inner.remove_unwanted(entry) {
            return;
        }
        entry.attempt.send_replace(Attempt::Underway);
    }
}

async fn attempt(inner: &Inner, entry: &Entry, lifetime: Duration) -> Result<WorkloadCertificate, Error> {
    let identity = &entry.identity;
    // Never closed while `inner` lives.
    let _turn = inner.turns.acquire().await;
    let timeout = attempt_timeout(lifetime);
    issue::issue(&*inner.signer, identity, inner.ttl, timeout, &inner.roots, &inner.clock).await
}

fn publish(inner: &Inner, entry: &Entry, certificate: WorkloadCertificate) {
    tracing::debug!(
        identity = %entry.identity,
        not_after = super::rfc3339(certificate.not_after),
        "certificate issued"
    );
    let before = entry.certificate.send_replace(Some(Arc::new(certificate)));
    entry.attempt.send_replace(Attempt::Done);
    metrics::issued(before.is_some());
    // Without receivers nobody wants to know.
    let _ = inner.changes.send(entry.identity.clone());
}

fn complain(inner: &Inner, entry: &Entry, error: &Error, wait: Duration) {
    metrics::failed(error);
    let now = (inner.clock)();
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
        "no new certificate"
    );
}

async fn sleep_until(clock: &super::Clock, time: SystemTime) {
    while let Ok(left) = time.duration_since(clock()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
    }
}

fn dice() -> f64 {
    rand::random()
}
