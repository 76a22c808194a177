//! Trusted roots as PEM, as bootstrap files and mounted ConfigMaps hold them: [`read`].

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::error::{Error, RootsError};

/// Reads roots from PEM; at least one.
pub fn read(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let roots: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Roots(RootsError::Pem(error)))?;
    if roots.is_empty() {
        return Err(Error::Roots(RootsError::Empty));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_or_malformed_roots_are_errors() {
        for (name, pem) in
            [("empty", ""), ("no certificate", "hello"), ("broken", "-----BEGIN CERTIFICATE-----\n!")]
        {
            assert!(matches!(read(pem), Err(Error::Roots(_))), "{name}");
        }
    }
}
