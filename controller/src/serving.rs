//! The controller's own TLS certificate: created at the start, renewed at half of what it lasts and when the
//! signing authority changes or expires; in memory only.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_kube::error::chain;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::ca::{self, Authorities, Authority, Serving};

/// The longest sleep: the wall clock may jump.
const MAX_SLEEP: Duration = Duration::from_mins(1);
/// The shortest: a CA about to expire signs for seconds.
const MIN_SLEEP: Duration = Duration::from_secs(1);

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
    signed: Mutex<Signed>,
}

/// Who signed the current certificate, and its times.
#[derive(Clone, Debug)]
struct Signed {
    authority: Arc<Authority>,
    not_after: SystemTime,
    renew_at: SystemTime,
}

impl Certificate {
    pub(crate) fn new(authorities: Authorities, server_name: &str) -> Result<Arc<Self>, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let now = SystemTime::now();
        let authority = authorities.borrow().serving_at(now).clone();
        let (key, signed) = make(authority, server_name, &provider, now)?;
        Ok(Arc::new(Self {
            authorities,
            server_name: server_name.to_owned(),
            provider,
            current: ArcSwap::from_pointee(key),
            signed: Mutex::new(signed),
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

    /// When the current one expires.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.signed.lock().not_after
    }

    /// Renews for as long as it is polled.
    pub(crate) async fn keep(&self) {
        let mut authorities = self.authorities.clone();
        loop {
            let left = self.signed.lock().renew_at.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = tokio::time::sleep(left.clamp(MIN_SLEEP, MAX_SLEEP)) => {}
                Ok(()) = authorities.changed() => {}
            }
            if let Err(error) = self.renew(SystemTime::now()) {
                tracing::error!(error = chain(&error), "failed to renew the controller's certificate");
            }
        }
    }

    /// Creates the next one if it is due.
    fn renew(&self, now: SystemTime) -> Result<(), Error> {
        let authority = self.authorities.borrow().serving_at(now).clone();
        {
            let signed = self.signed.lock();
            if Arc::ptr_eq(&signed.authority, &authority) && now < signed.renew_at {
                return Ok(());
            }
        }
        let (key, signed) = make(authority, &self.server_name, &self.provider, now)?;
        self.current.store(Arc::new(key));
        *self.signed.lock() = signed;
        tracing::info!("controller certificate renewed");
        Ok(())
    }
}

fn make(
    authority: Arc<Authority>,
    server_name: &str,
    provider: &CryptoProvider,
    now: SystemTime,
) -> Result<(CertifiedKey, Signed), Error> {
    let Serving { chain, key, not_after, renew_at } = authority.serving(server_name, now)?;
    let key = provider.key_provider.load_private_key(key)?;
    Ok((CertifiedKey::new(chain, key), Signed { authority, not_after, renew_at }))
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
