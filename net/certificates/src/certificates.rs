//! The certificates of a node's identities: [`Certificates`], [`Lease`].

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::model::Identity;
use ambit_daemon_kit::roots;
use ambit_daemon_kit::telemetry::exposition::Exposition;
use ambit_hbone::tls::WorkloadCertificate;
use parking_lot::RwLock;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast, watch};

use crate::clock::{Clock, rfc3339};
use crate::entry::{Attempt, Entry};
use crate::error::Error;
use crate::metrics;
use crate::renew::maintain;
use crate::signer::Signer;
use crate::store::Store;

/// Requests to the CA under way at a time: a node that starts asks for all its identities at once.
const CONCURRENT_REQUESTS: usize = 16;
/// Changes that a slow receiver may be behind before it lags.
const QUEUED_CHANGES: usize = 256;

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
pub struct Certificates(Arc<Store>);

/// Keeps an identity's certificate fetched and renewed. The last one dropped forgets the key.
#[must_use = "the identity is forgotten when its last lease is dropped"]
pub struct Lease {
    store: Arc<Store>,
    entry: Arc<Entry>,
}

/// One identity's state, for `/config_dump`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The SPIFFE ID.
    pub identity: String,
    /// When the certificate becomes valid (RFC 3339); absent while there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// When the certificate expires (RFC 3339).
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

    pub(crate) fn with_clock(signer: impl Signer, settings: &Settings, clock: Clock) -> Result<Self, Error> {
        Ok(Self(Arc::new(Store {
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
        Lease { store: self.0.clone(), entry: self.entry(identity, 1) }
    }

    /// The certificate, fetched if need be; many callers share one request. Fails at once while the last
    /// attempt has failed and the next is not due. Without a [`Lease`] the certificate is kept, but not
    /// renewed.
    pub async fn get(&self, identity: &Identity) -> Result<Arc<WorkloadCertificate>, Arc<Error>> {
        if let Some(certificate) = self.current(identity) {
            return Ok(certificate);
        }
        self.entry(identity, 0).wait(&self.0.clock).await
    }

    /// The certificate in force, if there is one and it has not expired. Cheap: for every handshake.
    pub fn current(&self, identity: &Identity) -> Option<Arc<WorkloadCertificate>> {
        self.0.entries.read().get(identity).and_then(|kept| kept.entry.current((self.0.clock)()))
    }

    /// Sends the identities that got a new certificate. A receiver that lags must take all as changed.
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
            // Fails only without receivers.
            let _ = self.0.changes.send(entry.identity.clone());
        }
        Ok(true)
    }

    /// The identity's entry with `leases` more; a new one begins to be fetched.
    fn entry(&self, identity: &Identity, leases: usize) -> Arc<Entry> {
        let (entry, new) = self.0.entry(identity, leases);
        if new {
            self.0.runtime.spawn(maintain(self.0.clone(), entry.clone()));
        }
        entry
    }

    /// Writes the metrics of all identities.
    pub fn show(&self, all: &mut Exposition) {
        metrics::show(&self.0, all);
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

impl Lease {
    /// The identity that the lease is for.
    pub fn identity(&self) -> &Identity {
        &self.entry.identity
    }

    /// The certificate in force, if there is one and it has not expired.
    pub fn current(&self) -> Option<Arc<WorkloadCertificate>> {
        self.entry.current((self.store.clock)())
    }

    /// Like [`Certificates::get`].
    pub async fn get(&self) -> Result<Arc<WorkloadCertificate>, Arc<Error>> {
        self.entry.wait(&self.store.clock).await
    }

    /// Follows the identity's certificate: the value is the newest, expired or not.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<WorkloadCertificate>>> {
        self.entry.certificate.subscribe()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.release(&self.entry);
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
