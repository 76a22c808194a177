//! All identities' certificates and what they are fetched with: [`Store`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::model::Identity;
use parking_lot::RwLock;
use rustls_pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast};

use crate::clock::Clock;
use crate::entry::Entry;
use crate::signer::Sign;

pub(crate) struct Store {
    pub(crate) signer: Box<dyn Sign>,
    /// The lifetime to ask for.
    pub(crate) ttl: Duration,
    /// Trusted besides the root that comes with each chain.
    pub(crate) roots: RwLock<Vec<CertificateDer<'static>>>,
    pub(crate) clock: Clock,
    /// Where renewals run.
    pub(crate) runtime: Handle,
    /// Requests to the CA under way.
    pub(crate) turns: Semaphore,
    pub(crate) changes: broadcast::Sender<Identity>,
    pub(crate) entries: RwLock<HashMap<Identity, Kept>>,
}

/// An entry and how many leases hold it. One that was only asked for by `Certificates::get` has none.
pub(crate) struct Kept {
    pub(crate) entry: Arc<Entry>,
    leases: usize,
}

impl Store {
    /// The identity's entry with `leases` more, and whether it is new: then the caller begins to fetch it.
    pub(crate) fn entry(&self, identity: &Identity, leases: usize) -> (Arc<Entry>, bool) {
        let mut entries = self.entries.write();
        if let Some(kept) = entries.get_mut(identity) {
            kept.leases += leases;
            return (kept.entry.clone(), false);
        }
        let entry = Arc::new(Entry::new(identity.clone()));
        entries.insert(identity.clone(), Kept { entry: entry.clone(), leases });
        (entry, true)
    }

    /// Gives one lease back; the last one forgets.
    pub(crate) fn release(&self, entry: &Arc<Entry>) {
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

    /// Removes the entry if there is no lease on it. True if it is gone.
    pub(crate) fn remove_unwanted(&self, entry: &Arc<Entry>) -> bool {
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
