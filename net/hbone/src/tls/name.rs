//! The identity in a certificate: its one URI name, a SPIFFE ID ([`identity`]); and when it expires.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use ambit_core::model::{Identity, IdentityError, TrustDomain};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why a certificate is not a workload's, or not the expected workload's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The peer presented no certificate.
    #[error("no certificate presented")]
    NoCertificate,
    /// The certificate is not X.509, or a name in it is malformed.
    #[error("failed to parse certificate: {0}")]
    Parse(String),
    /// The certificate has none, or more than one, URI name.
    #[error("certificate has {0} URI names, need exactly one")]
    Uris(usize),
    /// The URI name is not a SPIFFE ID.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A client's identity is of a trust domain that the server does not accept.
    #[error("identity mismatch: expected trust domain {}, got {presented}", one_of(expected))]
    TrustDomain {
        /// The trust domains that are accepted.
        expected: Box<[TrustDomain]>,
        /// The identity in the certificate.
        presented: Identity,
    },
    /// A server's identity is not the one that the client wanted to reach.
    #[error("identity mismatch: expected {}, got {presented}", one_of(expected))]
    Mismatch {
        /// The identities that are accepted.
        expected: Box<[Identity]>,
        /// The identity in the certificate.
        presented: Identity,
    },
}

/// How many alternatives a message shows.
const SHOWN: usize = 4;

fn one_of(expected: &[impl Display]) -> String {
    match expected {
        [] => "none".to_owned(),
        [one] => one.to_string(),
        several => {
            let mut shown: Vec<_> = several.iter().take(SHOWN).map(ToString::to_string).collect();
            if several.len() > SHOWN {
                shown.push(format!("{} more", several.len() - SHOWN));
            }
            format!("one of {}", shown.join(", "))
        }
    }
}

/// The identity in a certificate. One with a second URI name, or a malformed name, has none: which name
/// counts must never be a question.
pub fn identity(certificate: &CertificateDer<'_>) -> Result<Identity, NameError> {
    let parse = |error: &dyn Display| NameError::Parse(error.to_string());
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| parse(&error))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| parse(&error))?
        .map_or(&[][..], |extension| &extension.value.general_names[..]);
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(NameError::Parse("a name is malformed".to_owned()));
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
        X509Certificate::from_der(certificate).map_err(|error| NameError::Parse(error.to_string()))?;
    // Before 1970 it had expired as surely as in 1970.
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
