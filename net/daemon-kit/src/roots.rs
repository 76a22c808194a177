//! Trusted roots as PEM, as bootstrap files and mounted ConfigMaps hold them. Entry point: [`read`].

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::Error;

/// Reads roots from PEM; at least one.
pub fn read(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let roots: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Roots { message: error.to_string() })?;
    if roots.is_empty() {
        return Err(Error::Roots { message: "no certificate found".to_owned() });
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_must_be_there() {
        for (name, pem) in
            [("empty", ""), ("no certificate", "hello"), ("broken", "-----BEGIN CERTIFICATE-----\n!")]
        {
            assert!(matches!(read(pem), Err(Error::Roots { .. })), "{name}");
        }
    }
}
