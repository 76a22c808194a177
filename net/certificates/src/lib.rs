//! Certificates: one per workload identity, got from the CA, renewed at half-life, kept in memory only.
//!
//! [`Certificates::keep`] gives a [`Lease`]: while one lives, the identity's certificate is fetched and renewed.
//! [`Certificates::current`] is what a handshake takes; [`Certificates::changes`] tells which identity got a
//! new one.

mod entry;
mod error;
mod issue;
mod metrics;
mod schedule;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::model::Identity;
use ambit_daemon_kit::roots;
use ambit_hbone::tls::WorkloadCertificate;
use futures::future::BoxFuture;
use parking_lot::RwLock;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast, watch};

use self::entry::{Attempt, Entry, maintain};
pub use self::error::Error;

/// Requests to the CA under way at a time: a node that starts asks for all its identities at once.
const CONCURRENT_REQUESTS: usize = 16;
/// Changes a slow follower may be behind before it is told that it lags.
const QUEUED_CHANGES: usize = 256;

/// What time it is; tests have their own.
type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Who signs: the controller's CA, or a script in tests.
pub trait Signer: Send + Sync + 'static {
    /// Why it refused or failed.
    type Error: Into<Box<dyn std::error::Error + Send + Sync>>;

    /// Signs the request (PEM) and returns the chain as PEMs: leaf first, root last.
    fn sign(
        &self,
        identity: &Identity,
        csr_pem: String,
        ttl: Duration,
    ) -> impl Future<Output = Result<Vec<String>, Self::Error>> + Send;
}

/// [`Signer`] behind a pointer.
trait Sign: Send + Sync {
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
        csr_pem: String,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>>>;
}

impl<S: Signer> Sign for S {
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
        csr_pem: String,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async move { Signer::sign(self, identity, csr_pem, ttl).await.map_err(Into::into) })
    }
}

/// What certificates to ask for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The lifetime to ask for; the CA may give less.
    pub ttl: Duration,
    /// Trusted besides the root that comes with each chain: the bootstrap file's, as PEM.
    /// [`Certificates::trust`] replaces them.
    pub roots: String,
}

/// The certificates of this node's workloads. Clones are the same ones.
#[derive(Clone)]
pub struct Certificates(Arc<Inner>);

struct Inner {
    signer: Box<dyn Sign>,
    ttl: Duration,
    roots: RwLock<Vec<CertificateDer<'static>>>,
    clock: Clock,
    runtime: Handle,
    turns: Semaphore,
    changes: broadcast::Sender<Identity>,
    entries: RwLock<HashMap<Identity, Kept>>,
}

/// An entry and how many leases hold it. One that was only asked for by [`Certificates::get`] has none.
struct Kept {
    entry: Arc<Entry>,
    leases: usize,
}

/// A wish for an identity's certificate. The last one dropped forgets the key.
#[must_use = "the identity is forgotten when its last lease is dropped"]
pub struct Lease {
    inner: Arc<Inner>,
    entry: Arc<Entry>,
}

/// One identity's state, for `/config_dump`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub identity: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// Why the last attempt failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Certificates {
    /// Nothing is fetched yet. Must be called inside a tokio runtime; renewals run there.
    pub fn new(signer: impl Signer, settings: &Settings) -> Result<Self, Error> {
        Self::with_clock(signer, settings, Arc::new(SystemTime::now))
    }

    fn with_clock(signer: impl Signer, settings: &Settings, clock: Clock) -> Result<Self, Error> {
        Ok(Self(Arc::new(Inner {
            signer: Box::new(signer),
            ttl: settings.ttl,
            roots: RwLock::new(roots::read(&settings.roots)?),
            clock,
            runtime: Handle::current(),
            turns: Semaphore::new(CONCURRENT_REQUESTS),
            changes: broadcast::Sender::new(QUEUED_CHANGES),
            entries: RwLock::default(),
        })))
    }

    /// Fetches the identity's certificate, and renews it while the lease lives. Returns at once.
    pub fn keep(&self, identity: &Identity) -> Lease {
        let entry = Inner::entry(&self.0, identity, 1);
        Lease { inner: self.0.clone(), entry }
    }

    /// The certificate, fetched if need be; many callers share one request. Fails at once while the last
    /// attempt has failed and the next is not due. Without a [`Lease`] the certificate is kept, but not
    /// renewed.
    pub async fn get(&self, identity: &Identity) -> Result<Arc<WorkloadCertificate>, Arc<Error>> {
        if let Some(certificate) = self.current(identity) {
            return Ok(certificate);
        }
        Inner::entry(&self.0, identity, 0).wait(&self.0.clock).await
    }

    /// The certificate in force, if there is one and it has not expired. Cheap: for every handshake.
    pub fn current(&self, identity: &Identity) -> Option<Arc<WorkloadCertificate>> {
        self.0.entries.read().get(identity).and_then(|kept| kept.entry.current((self.0.clock)()))
    }

    /// Says which identity got a new certificate. A receiver that lags must take all as changed.
    pub fn changes(&self) -> broadcast::Receiver<Identity> {
        self.0.changes.subscribe()
    }

    /// Trusts these roots (PEM) from now on, besides the root that came with each chain, also where a
    /// certificate is held already. True if they are others than before.
    pub fn trust(&self, roots: &str) -> Result<bool, Error> {
        let roots = roots::read(roots)?;
        if *self.0.roots.read() == roots {
            return Ok(false);
        }
        self.0.roots.write().clone_from(&roots);
        let entries: Vec<_> = self.0.entries.read().values().map(|kept| kept.entry.clone()).collect();
        for entry in entries {
            entry.trust(&roots)?;
            // Without receivers nobody wants to know.
            let _ = self.0.changes.send(entry.identity.clone());
        }
        Ok(true)
    }

    /// All identities, for `/config_dump`.
    pub fn status(&self) -> Vec<Status> {
        let mut all: Vec<_> = self.0.entries.read().values().map(|kept| Status::of(&kept.entry)).collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificates").field(&self.0.entries.read().keys()).finish()
    }
}

impl Inner {
    /// The identity's entry with `leases` more; a new one begins to be fetched.
    fn entry(inner: &Arc<Self>, identity: &Identity, leases: usize) -> Arc<Entry> {
        let mut entries = inner.entries.write();
        if let Some(kept) = entries.get_mut(identity) {
            kept.leases += leases;
            return kept.entry.clone();
        }
        let entry = Arc::new(Entry::new(identity.clone()));
        entries.insert(identity.clone(), Kept { entry: entry.clone(), leases });
        inner.runtime.spawn(maintain(inner.clone(), entry.clone()));
        entry
    }

    /// Gives one lease back; the last one forgets.
    fn release(&self, entry: &Arc<Entry>) {
        let mut entries = self.entries.write();
        let Some(kept) = entries.get_mut(&entry.identity).filter(|kept| Arc::ptr_eq(&kept.entry, entry))
        else {
            return;
        };
        kept.leases = kept.leases.saturating_sub(1);
        if kept.leases == 0 {
            entries.remove(&entry.identity);
            entry.forgotten.cancel();
        }
    }

    /// Removes the entry if nobody holds a lease, and says whether it is gone.
    fn remove_unwanted(&self, entry: &Arc<Entry>) -> bool {
        let mut entries = self.entries.write();
        let Some(kept) = entries.get(&entry.identity).filter(|kept| Arc::ptr_eq(&kept.entry, entry)) else {
            return true;
        };
        if kept.leases > 0 {
            return false;
        }
        entries.remove(&entry.identity);
        true
    }
}

impl Lease {
    pub fn identity(&self) -> &Identity {
        &self.entry.identity
    }

    /// The certificate in force, if there is one and it has not expired.
    pub fn current(&self) -> Option<Arc<WorkloadCertificate>> {
        self.entry.current((self.inner.clock)())
    }

    /// Like [`Certificates::get`].
    pub async fn get(&self) -> Result<Arc<WorkloadCertificate>, Arc<Error>> {
        self.entry.wait(&self.inner.clock).await
    }

    /// Follows the identity's certificate: the value is the newest, expired or not.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<WorkloadCertificate>>> {
        self.entry.certificate.subscribe()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.inner.release(&self.entry);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.entry.identity).finish()
    }
}

impl Status {
    fn of(entry: &Entry) -> Self {
        let certificate = entry.certificate.borrow().clone();
        let error = match &*entry.attempt.borrow() {
            Attempt::Failed(error) => Some(error.chain()),
            Attempt::Underway | Attempt::Done => None,
        };
        Self {
            identity: entry.identity.to_string(),
            not_before: certificate.as_ref().map(|certificate| rfc3339(certificate.not_before)),
            not_after: certificate.as_ref().map(|certificate| rfc3339(certificate.not_after)),
            error,
        }
    }
}

fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| format!("{time:?}"), |time| time.to_string())
}
