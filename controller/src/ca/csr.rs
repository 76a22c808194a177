//! Certificate signing requests: only the key is used, and only if the request proves possession of it.

use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// Longer than any request with a P-256 key and one name.
const MAX_LENGTH: usize = 16 * 1024;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CsrError {
    #[error("it is not a PEM certificate request")]
    Form,
    #[error("its signature is not by its key")]
    Signature,
    #[error("its key is not an ECDSA P-256 key")]
    Key,
    #[error("it claims {claimed:?}, the requested identity is {identity}")]
    Name { claimed: String, identity: String },
}

/// Checks a request and returns its key. It may name `identity`, or no identity.
pub(crate) fn check(pem: &str, identity: &str) -> Result<SubjectPublicKeyInfo, CsrError> {
    if pem.len() > MAX_LENGTH {
        return Err(CsrError::Form);
    }
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| CsrError::Form)?;
    if !matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
        return Err(CsrError::Form);
    }
    let (rest, csr) = X509CertificationRequest::from_der(&block.contents).map_err(|_| CsrError::Form)?;
    if !rest.is_empty() {
        return Err(CsrError::Form);
    }
    csr.verify_signature().map_err(|_| CsrError::Signature)?;
    let spki = SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
        .map_err(|_| CsrError::Key)?;
    if spki.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(CsrError::Key);
    }
    for extension in csr.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            if !matches!(name, GeneralName::URI(uri) if *uri == identity) {
                let claimed = name.to_string();
                return Err(CsrError::Name { claimed, identity: identity.to_owned() });
            }
        }
    }
    Ok(spki)
}
