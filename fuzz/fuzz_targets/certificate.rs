//! The identity in a certificate: any bytes give an identity or an error. And any text as a SPIFFE ID.
#![no_main]

use ambit_core::model::Identity;
use ambit_hbone::tls;
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

fuzz_target!(|data: &[u8]| {
    if let Ok(identity) = tls::identity(&CertificateDer::from(data)) {
        assert_canonical(&identity);
    }
    if let Some(Ok(identity)) = std::str::from_utf8(data).ok().map(str::parse) {
        assert_canonical(&identity);
    }
});

/// An identity has exactly one textual form, because policies compare texts.
fn assert_canonical(identity: &Identity) {
    let text = identity.to_string();
    assert_eq!(text.parse::<Identity>().as_ref(), Ok(identity));
    let principal = identity.principal();
    assert_eq!(text.strip_prefix("spiffe://"), Some(&*principal));
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    assert!(principal.chars().all(bare) && principal.split('/').count() == 5, "{principal}");
}
