//! Mutual TLS 1.3 between workloads: [`server_config`] and [`client_config`] made from a
//! [`WorkloadCertificate`].
//!
//! No session is ever resumed and no ticket given out: every connection proves both identities afresh, with
//! the certificates in force.

pub(crate) mod name;
mod verify;

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use ambit_core::model::{Identity, TrustDomain};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, CommonState, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub use self::name::{NameError, identity};
use self::verify::{VerifyClient, VerifyServer};
use crate::error::Error;

/// What rustls may hold encrypted and unsent: one frame of a relay and some small ones, so that a frame is
/// one write.
pub(crate) const SEND_BUFFER: usize = 256 << 10;

const ALPN: &[u8] = b"h2";

/// A workload's certificate and what it trusts.
#[derive(Clone, Debug)]
pub struct WorkloadCertificate {
    /// The workload's SPIFFE ID.
    pub identity: Identity,
    /// The key with the chain as shown in handshakes: leaf first, without the root.
    pub key: Arc<CertifiedKey>,
    /// The roots that its peers' certificates must come from.
    pub roots: Arc<RootCertStore>,
    /// When the whole chain is valid from.
    pub not_before: SystemTime,
    /// When the first certificate of the chain expires.
    pub not_after: SystemTime,
}

impl WorkloadCertificate {
    /// Puts together what a CA returned: PEM texts, leaf first and root last, and the key they are for.
    /// Whether they are valid and for this identity is the caller's to check; peers check it in every
    /// handshake.
    pub fn new(
        identity: Identity,
        chain: &[String],
        key: PrivateKeyDer<'static>,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Self, Error> {
        let mut chain: Vec<CertificateDer<'static>> = chain
            .iter()
            .flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes()))
            .collect::<Result<_, _>>()
            .map_err(|source| Error::ParseChain { identity: identity.clone(), source })?;
        let short = |length| Error::ShortChain { identity: identity.clone(), length };
        let root = chain.pop().ok_or_else(|| short(0))?;
        if chain.is_empty() {
            return Err(short(1));
        }
        let failed = |source| Error::LoadCertificate { identity: identity.clone(), source };
        let mut roots = RootCertStore::empty();
        roots.add(root).map_err(failed)?;
        let key = CertifiedKey::from_der(chain, key, &PROVIDER).map_err(failed)?;
        Ok(Self { identity, key: Arc::new(key), roots: Arc::new(roots), not_before, not_after })
    }
}

/// AES-128 first: as safe as the P-256 and ML-KEM-768 around it, and a quarter faster than AES-256.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::{cipher_suite as suites, kx_group as groups};
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            suites::TLS13_AES_128_GCM_SHA256,
            suites::TLS13_AES_256_GCM_SHA384,
            suites::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![groups::X25519MLKEM768, groups::X25519, groups::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
});

/// For accepting tunnels to a workload: the client must show a certificate from the workload's roots, in
/// force, that names exactly one identity, of the workload's own trust domain.
pub fn server_config(certificate: &WorkloadCertificate) -> Arc<ServerConfig> {
    server_config_with_aliases(certificate, &[])
}

/// The same where other trust domains are as good as the workload's own.
pub fn server_config_with_aliases(
    certificate: &WorkloadCertificate,
    aliases: &[TrustDomain],
) -> Arc<ServerConfig> {
    let own = std::iter::once(&certificate.identity.trust_domain);
    let trust_domains = own.chain(aliases).cloned().collect();
    let verifier = VerifyClient::new(certificate.roots.clone(), trust_domains, &PROVIDER);
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate.key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// For opening tunnels from a workload: the server must show a certificate from the workload's roots, in
/// force, that names exactly one identity, which must be among `expected`.
pub fn client_config(certificate: &WorkloadCertificate, expected: &[Identity]) -> Arc<ClientConfig> {
    let verifier = VerifyServer::new(certificate.roots.clone(), expected.into(), &PROVIDER);
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate.key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Arc::new(config)
}

/// The identity of the peer of a finished handshake, and when its certificates expire.
pub(crate) fn peer(connection: &CommonState) -> Result<(Identity, SystemTime), Error> {
    let chain = connection.peer_certificates().unwrap_or_default();
    let leaf = chain.first().ok_or(Error::PeerIdentity { source: NameError::NoCertificate })?;
    let failed = |source| Error::PeerIdentity { source };
    let identity = identity(leaf).map_err(failed)?;
    let mut until = name::not_after(leaf).map_err(failed)?;
    for certificate in &chain[1..] {
        until = until.min(name::not_after(certificate).map_err(failed)?);
    }
    Ok((identity, until))
}

/// A server without a protocol in common goes on without ALPN: that is not HTTP/2.
pub(crate) fn require_http2(connection: &CommonState) -> Result<(), Error> {
    if connection.alpn_protocol() == Some(ALPN) { Ok(()) } else { Err(Error::NoAlpn) }
}
