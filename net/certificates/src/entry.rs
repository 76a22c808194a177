//! One identity's certificate as handshakes read it: [`Entry`].

use std::sync::Arc;
use std::time::SystemTime;

use ambit_core::model::Identity;
use ambit_hbone::tls::WorkloadCertificate;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::error::Error;
use crate::issue;

/// What is known of one identity.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) identity: Identity,
    /// The newest certificate, expired or not.
    pub(crate) certificate: watch::Sender<Option<Arc<WorkloadCertificate>>>,
    /// The root that came with it.
    pub(crate) root: Mutex<Option<CertificateDer<'static>>>,
    pub(crate) attempt: watch::Sender<Attempt>,
    pub(crate) forgotten: CancellationToken,
}

/// How the last attempt went.
#[derive(Clone, Debug)]
pub(crate) enum Attempt {
    Underway,
    Done,
    Failed(Arc<Error>),
}

impl Entry {
    pub(crate) fn new(identity: Identity) -> Self {
        Self {
            identity,
            certificate: watch::Sender::new(None),
            root: Mutex::default(),
            attempt: watch::Sender::new(Attempt::Underway),
            forgotten: CancellationToken::new(),
        }
    }

    /// The certificate, unless there is none or it has expired.
    pub(crate) fn current(&self, now: SystemTime) -> Option<Arc<WorkloadCertificate>> {
        self.certificate.borrow().as_ref().filter(|certificate| now < certificate.not_after).cloned()
    }

    /// Puts other roots beside the one that came with the certificate.
    pub(crate) fn trust(&self, roots: &[CertificateDer<'static>]) -> Result<(), Error> {
        let root = self.root.lock();
        let store =
            issue::store(roots.iter().chain(root.as_ref())).map_err(|source| Error::TrustRoots { source })?;
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
    pub(crate) async fn wait(&self, clock: &Clock) -> Result<Arc<WorkloadCertificate>, Arc<Error>> {
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
