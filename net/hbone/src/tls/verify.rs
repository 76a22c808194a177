//! Verification of peers: the chain by webpki, then the identity; never a host name ([`VerifyClient`],
//! [`VerifyServer`]).

use std::fmt;
use std::sync::Arc;

use ambit_core::model::{Identity, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::name::{NameError, identity};

/// What both sides check: the chain and its identity.
#[derive(Debug)]
struct Chain {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Chain {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<Identity, Error> {
        EndEntityCert::try_from(leaf)
            .and_then(|certificate| {
                certificate
                    .verify_for_usage(
                        self.algorithms.all,
                        &self.roots.roots,
                        intermediates,
                        now,
                        usage,
                        None,
                        None,
                    )
                    .map(drop)
            })
            .map_err(chain_error)?;
        identity(leaf).map_err(name_error)
    }

    fn verify_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }
}

/// A server's view of its clients.
#[derive(Debug)]
pub(super) struct VerifyClient {
    chain: Chain,
    /// Any of these.
    trust_domains: Box<[TrustDomain]>,
}

impl VerifyClient {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        trust_domains: Box<[TrustDomain]>,
        provider: &CryptoProvider,
    ) -> Self {
        Self { chain: Chain { roots, algorithms: provider.signature_verification_algorithms }, trust_domains }
    }
}

impl ClientCertVerifier for VerifyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let client = self.chain.verify(leaf, intermediates, now, KeyUsage::client_auth())?;
        if !self.trust_domains.contains(&client.trust_domain) {
            let expected = self.trust_domains.clone();
            return Err(name_error(NameError::TrustDomain { expected, presented: client }));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.algorithms.supported_schemes()
    }
}

/// A client's view of its server.
#[derive(Debug)]
pub(super) struct VerifyServer {
    chain: Chain,
    expected: Box<[Identity]>,
}

impl VerifyServer {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        expected: Box<[Identity]>,
        provider: &CryptoProvider,
    ) -> Self {
        Self { chain: Chain { roots, algorithms: provider.signature_verification_algorithms }, expected }
    }
}

impl ServerCertVerifier for VerifyServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let server = self.chain.verify(leaf, intermediates, now, KeyUsage::server_auth())?;
        if !self.expected.contains(&server) {
            let expected = self.expected.clone();
            return Err(name_error(NameError::Mismatch { expected, presented: server }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.algorithms.supported_schemes()
    }
}

/// Keeps the alerts that tell a peer what is wrong with its certificate.
fn chain_error(error: webpki::Error) -> Error {
    match error {
        webpki::Error::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }.into()
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }.into()
        }
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature.into(),
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        webpki::Error::BadDer | webpki::Error::TrailingData(_) => CertificateError::BadEncoding.into(),
        other => cause(other),
    }
}

fn name_error(error: NameError) -> Error {
    cause(error)
}

/// Sends the peer the alert about its certificate, and keeps the reason for the log.
fn cause(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    CertificateError::Other(OtherError(Arc::new(Cause(error)))).into()
}

/// rustls shows causes with `Debug`.
#[derive(thiserror::Error)]
#[error("{0}")]
struct Cause<E>(E);

impl<E: fmt::Display> fmt::Debug for Cause<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
