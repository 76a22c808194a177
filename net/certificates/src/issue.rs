//! One certificate: a fresh key, a request, the signer's answer, and why an answer may be refused
//! ([`issue`]).
//!
//! The signer is trusted to vouch for identities, not to be right: what it returns must be for our key and
//! for exactly the identity asked for, must chain to the root it came with, and must be valid now.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_core::model::Identity;
use ambit_hbone::tls::WorkloadCertificate;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::clock::{Clock, rfc3339};
use crate::error::Error;
use crate::signer::Sign;

/// What the signer gave.
pub(crate) struct Issued {
    /// Trusts no more than the root it came with.
    pub(crate) certificate: WorkloadCertificate,
    pub(crate) root: CertificateDer<'static>,
}

/// Asks the signer for a certificate with a new key, and checks what comes back against the time when it
/// came.
pub(crate) async fn issue(
    signer: &dyn Sign,
    identity: &Identity,
    ttl: Duration,
    timeout: Duration,
    clock: &Clock,
) -> Result<Issued, Error> {
    let failed = |source| Error::CreateKey { identity: identity.clone(), source };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let csr = request(identity, &key).map_err(failed)?;
    let chain = tokio::time::timeout(timeout, signer.sign(identity, csr, ttl))
        .await
        .map_err(|_elapsed| Error::SignTimeout { identity: identity.clone(), timeout })?
        .map_err(|source| Error::Sign { identity: identity.clone(), source })?;
    accept(identity, &chain, &key, clock())
        .map_err(|message| Error::Refused { identity: identity.clone(), message })
}

/// The request, as PEM: nothing but the key and the identity.
fn request(identity: &Identity, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.serialize_request(key)?.pem()
}

/// Takes the signer's answer, or returns why it is refused.
fn accept(identity: &Identity, chain: &[String], key: &KeyPair, now: SystemTime) -> Result<Issued, String> {
    let chain = read_chain(chain)?;
    let [leaf, intermediates @ .., root] = &chain[..] else {
        return Err(format!("chain has {} certificates, need at least leaf and root", chain.len()));
    };
    check_identity(identity, leaf)?;
    let validity = validity(&chain, now)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    check_chain(leaf, intermediates, root, &provider, now)?;
    let certified = certified_key(leaf, intermediates, key, &provider)?;
    let certificate = WorkloadCertificate {
        identity: identity.clone(),
        key: Arc::new(certified),
        roots: Arc::new(store([root]).map_err(|error| root_error(&error))?),
        not_before: validity.0,
        not_after: validity.1,
    };
    Ok(Issued { certificate, root: root.clone() })
}

fn read_chain(chain: &[String]) -> Result<Vec<CertificateDer<'static>>, String> {
    chain
        .iter()
        .flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes()))
        .collect::<Result<_, _>>()
        .map_err(|error| format!("failed to parse the chain: {error}"))
}

/// The leaf must name the identity and nothing else.
fn check_identity(identity: &Identity, leaf: &CertificateDer<'_>) -> Result<(), String> {
    let names = parse(leaf)?
        .subject_alternative_name()
        .map_err(|error| format!("failed to read the leaf's names: {error}"))?
        .map(|extension| extension.value.general_names.iter().map(name).collect::<Vec<_>>())
        .unwrap_or_default();
    if names == [identity.to_string()] {
        return Ok(());
    }
    Err(format!("expected the name {identity}, got {names:?}"))
}

fn name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::URI(uri) => (*uri).to_owned(),
        other => other.to_string(),
    }
}

/// The leaf must come from the root it was returned with, for both sides of a handshake.
fn check_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    root: &CertificateDer<'static>,
    provider: &CryptoProvider,
    now: SystemTime,
) -> Result<(), String> {
    let now = now
        .duration_since(UNIX_EPOCH)
        .map_err(|_| "failed to read the clock: it is before 1970".to_owned())?;
    let now = UnixTime::since_unix_epoch(now);
    let roots = store([root]).map_err(|error| root_error(&error))?;
    let certificate =
        EndEntityCert::try_from(leaf).map_err(|error| format!("failed to read the leaf: {error}"))?;
    for (usage, side) in [(KeyUsage::client_auth(), "client"), (KeyUsage::server_auth(), "server")] {
        let algorithms = provider.signature_verification_algorithms.all;
        certificate
            .verify_for_usage(algorithms, &roots.roots, intermediates, now, usage, None, None)
            .map_err(|error| format!("failed to verify the chain for a TLS {side}: {error}"))?;
    }
    Ok(())
}

/// When the chain as a whole is valid, roots included; an error if that is not now.
fn validity(chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(SystemTime, SystemTime), String> {
    let mut valid: Option<(SystemTime, SystemTime)> = None;
    for certificate in chain {
        let parsed = parse(certificate)?;
        let not_before = time(parsed.validity().not_before.timestamp());
        let not_after = time(parsed.validity().not_after.timestamp());
        valid = Some(match valid {
            None => (not_before, not_after),
            Some((from, to)) => (from.max(not_before), to.min(not_after)),
        });
    }
    let (not_before, not_after) = valid.ok_or("chain is empty")?;
    if now < not_before {
        return Err(format!("chain is not valid before {}", rfc3339(not_before)));
    }
    if now >= not_after {
        return Err(format!("chain expired at {}", rfc3339(not_after)));
    }
    Ok((not_before, not_after))
}

fn time(seconds: i64) -> SystemTime {
    u64::try_from(seconds).map_or(UNIX_EPOCH, |seconds| UNIX_EPOCH + Duration::from_secs(seconds))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|error| format!("failed to parse a certificate: {error}"))
}

/// The key with its chain, as TLS shows it (without the root); an error if the leaf is for another key.
fn certified_key(
    leaf: &CertificateDer<'static>,
    intermediates: &[CertificateDer<'static>],
    key: &KeyPair,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, String> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let shown = [std::slice::from_ref(leaf), intermediates].concat();
    CertifiedKey::from_der(shown, key, provider)
        .map_err(|error| format!("failed to pair the certificate with the requested key: {error}"))
}

fn root_error(error: &rustls::Error) -> String {
    format!("failed to trust the root: {error}")
}

/// A store of roots.
pub(crate) fn store<'a>(
    roots: impl IntoIterator<Item = &'a CertificateDer<'static>>,
) -> Result<RootCertStore, rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    Ok(store)
}
