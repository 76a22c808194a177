//! The controller's own TLS: a certificate made at the start and again at half of its life, in memory only.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::ca::{self, Authority};

/// Between two looks at the clock: it may jump.
const LOOK: Duration = Duration::from_mins(1);

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("making the controller's own certificate")]
    Make(#[from] ca::Error),
    #[error("taking the controller's own certificate")]
    Take(#[from] rustls::Error),
}

/// Holds the current certificate.
#[derive(Debug)]
pub(crate) struct Certificate {
    authority: Arc<Authority>,
    server_name: String,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<CertifiedKey>,
    renew_at: Mutex<SystemTime>,
}

impl Certificate {
    pub(crate) fn new(authority: Arc<Authority>, server_name: &str) -> Result<Arc<Self>, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (key, renew_at) = make(&authority, server_name, &provider)?;
        Ok(Arc::new(Self {
            authority,
            server_name: server_name.to_owned(),
            provider,
            current: ArcSwap::from_pointee(key),
            renew_at: Mutex::new(renew_at),
        }))
    }

    /// TLS 1.3 and HTTP/2 only.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// Renews for as long as it is polled.
    pub(crate) async fn keep(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.renew(SystemTime::now()) {
                tracing::error!(error = %crate::error_chain(&error), "the controller's certificate was not renewed");
            }
        }
    }

    /// Makes the next one if it is due.
    fn renew(&self, now: SystemTime) -> Result<(), Error> {
        if now < *self.renew_at.lock() {
            return Ok(());
        }
        let (key, renew_at) = make(&self.authority, &self.server_name, &self.provider)?;
        self.current.store(Arc::new(key));
        *self.renew_at.lock() = renew_at;
        tracing::info!("the controller's certificate was renewed");
        Ok(())
    }
}

fn make(
    authority: &Authority,
    server_name: &str,
    provider: &CryptoProvider,
) -> Result<(CertifiedKey, SystemTime), Error> {
    let serving = authority.serving(server_name, SystemTime::now())?;
    let key = provider.key_provider.load_private_key(serving.key)?;
    Ok((CertifiedKey::new(serving.chain, key), serving.renew_at))
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Folder;

    #[test]
    fn it_is_renewed_when_due() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).unwrap();
        let hour = Duration::from_hours(1);
        let authority =
            Authority::open(&folder, &"cluster.local".parse().unwrap(), hour, SystemTime::now()).unwrap();
        let certificate = Certificate::new(Arc::new(authority), "ambit-controller").unwrap();
        let leaf = || certificate.current.load().cert[0].clone();
        let first = leaf();
        certificate.renew(SystemTime::now()).unwrap();
        assert_eq!(leaf(), first, "not due yet");
        certificate.renew(SystemTime::now() + 13 * hour).unwrap();
        assert_ne!(leaf(), first);
    }
}
