//! Who a certificate is for: its one URI name, a SPIFFE ID ([`identity`]); and until when it says so.

use std::time::{Duration, SystemTime};

use ambit_core::model::{Identity, IdentityError};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why a certificate is not a workload's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("no certificate was shown")]
    NoCertificate,
    #[error("the certificate cannot be read: {0}")]
    Read(String),
    #[error("the certificate has {0} URI names, not one")]
    Uris(usize),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{0} is of another trust domain")]
    TrustDomain(Identity),
    #[error("{0} is not who was expected")]
    Unexpected(Identity),
}

/// The identity in a certificate. A second URI name, or one that cannot be read, makes it nobody's: which one
/// counts must never be a question.
pub fn identity(certificate: &CertificateDer<'_>) -> Result<Identity, NameError> {
    let read = |error: &dyn std::fmt::Display| NameError::Read(error.to_string());
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| read(&error))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| read(&error))?
        .map_or(&[][..], |extension| &extension.value.general_names[..]);
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(NameError::Read("a name that is malformed".to_owned()));
    }
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let [uri] = uris[..] else { return Err(NameError::Uris(uris.len())) };
    Ok(uri.parse()?)
}

/// When a certificate expires.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Result<SystemTime, NameError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| NameError::Read(error.to_string()))?;
    // Before 1970 it had expired as surely as in 1970.
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}
