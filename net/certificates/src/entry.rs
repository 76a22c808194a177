//! One identity's certificate over time: the state that handshakes read, and the task that keeps it fresh.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::model::Identity;
use ambit_hbone::tls::WorkloadCertificate;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::issue::Issued;
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
    /// The root that came with it.
    root: Mutex<Option<CertificateDer<'static>>>,
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
            root: Mutex::default(),
            attempt: watch::Sender::new(Attempt::Underway),
            forgotten: CancellationToken::new(),
        }
    }

    /// The certificate, unless there is none or it has expired.
    pub(super) fn current(&self, now: SystemTime) -> Option<Arc<WorkloadCertificate>> {
        self.certificate.borrow().as_ref().filter(|certificate| now < certificate.not_after).cloned()
    }

    /// Puts other roots beside the one that came with the certificate.
    pub(super) fn trust(&self, roots: &[CertificateDer<'static>]) -> Result<(), Error> {
        let root = self.root.lock();
        let store =
            issue::store(roots.iter().chain(root.as_ref())).map_err(|message| Error::Roots { message })?;
        self.certificate.send_if_modified(|held| match held {
            Some(certificate) => {
                *certificate =
                    Arc::new(WorkloadCertificate { roots: Arc::new(store), ..(**certificate).clone() });
                true
            }
            None => false,
        });
        Ok(())
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

/// Keeps the entry's certificate fresh until it is forgotten, or nobody holds a lease when it would be
/// renewed.
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
        let issued = attempt(inner, entry, lifetime).await;
        let next = match issued.and_then(|issued| publish(inner, entry, issued)) {
            Ok(not_after) => {
                let now = (inner.clock)();
                lifetime = not_after.duration_since(now).unwrap_or_default();
                backoff = Backoff::new(lifetime);
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

async fn attempt(inner: &Inner, entry: &Entry, lifetime: Duration) -> Result<Issued, Error> {
    let identity = &entry.identity;
    // Never closed while `inner` lives.
    let _turn = inner.turns.acquire().await;
    let timeout = attempt_timeout(lifetime);
    issue::issue(&*inner.signer, identity, inner.ttl, timeout, &inner.clock).await
}

/// Puts a certificate in force, with the roots that are trusted now. Says when it ends.
fn publish(inner: &Inner, entry: &Entry, issued: Issued) -> Result<SystemTime, Error> {
    let Issued { certificate, root } = issued;
    let not_after = certificate.not_after;
    tracing::debug!(identity = %entry.identity, not_after = super::rfc3339(not_after), "certificate issued");
    let before = entry.certificate.borrow().is_some();
    let roots = inner.roots.read().clone();
    let store = issue::store(roots.iter().chain([&root])).map_err(|message| Error::Roots { message })?;
    let certificate = WorkloadCertificate { roots: Arc::new(store), ..certificate };
    *entry.root.lock() = Some(root);
    entry.certificate.send_replace(Some(Arc::new(certificate)));
    // Roots that changed meanwhile may have found the earlier certificate.
    let now = inner.roots.read().clone();
    if now != roots {
        entry.trust(&now)?;
    }
    entry.attempt.send_replace(Attempt::Done);
    metrics::issued(before);
    // Without receivers nobody wants to know.
    let _ = inner.changes.send(entry.identity.clone());
    Ok(not_after)
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
