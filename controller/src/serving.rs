//! The controller's own TLS certificate: created at the start, renewed at half of its lifetime and when the
//! signing authority changes; in memory only.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_kube::error::chain;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::ca::{self, Authorities, Authority};

/// The longest sleep: the wall clock may jump.
const MAX_SLEEP: Duration = Duration::from_mins(1);

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to create the controller's certificate")]
    Make(#[from] ca::Error),
    #[error("failed to use the controller's certificate")]
    Take(#[from] rustls::Error),
}

/// Holds the current certificate.
#[derive(Debug)]
pub(crate) struct Certificate {
    authorities: Authorities,
    server_name: String,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<CertifiedKey>,
    /// The authority that signed the current one, and when it is to be renewed.
    signed: Mutex<(Arc<Authority>, SystemTime)>,
}

impl Certificate {
    pub(crate) fn new(authorities: Authorities, server_name: &str) -> Result<Arc<Self>, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let authority = authorities.borrow().serving.clone();
        let (key, renew_at) = make(&authority, server_name, &provider)?;
        Ok(Arc::new(Self {
            authorities,
            server_name: server_name.to_owned(),
            provider,
            current: ArcSwap::from_pointee(key),
            signed: Mutex::new((authority, renew_at)),
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
        let mut authorities = self.authorities.clone();
        loop {
            tokio::select! {
                () = tokio::time::sleep(MAX_SLEEP) => {}
                Ok(()) = authorities.changed() => {}
            }
            if let Err(error) = self.renew(SystemTime::now()) {
                tracing::error!(error = chain(&error), "failed to renew the controller's certificate");
            }
        }
    }

    /// Creates the next one if it is due.
    fn renew(&self, now: SystemTime) -> Result<(), Error> {
        let authority = self.authorities.borrow().serving.clone();
        {
            let signed = self.signed.lock();
            if Arc::ptr_eq(&signed.0, &authority) && now < signed.1 {
                return Ok(());
            }
        }
        let (key, renew_at) = make(&authority, &self.server_name, &self.provider)?;
        self.current.store(Arc::new(key));
        *self.signed.lock() = (authority, renew_at);
        tracing::info!("controller certificate renewed");
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
    fn the_certificate_is_renewed_when_due() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).unwrap();
        let hour = Duration::from_hours(1);
        let authority =
            Authority::open(&folder, &"cluster.local".parse().unwrap(), hour, SystemTime::now()).unwrap();
        let certificate = Certificate::new(ca::only(authority), "ambit-controller").unwrap();
        let leaf = || certificate.current.load().cert[0].clone();
        let first = leaf();
        certificate.renew(SystemTime::now()).unwrap();
        assert_eq!(leaf(), first, "not due yet");
        certificate.renew(SystemTime::now() + 13 * hour).unwrap();
        assert_ne!(leaf(), first);
    }
}
