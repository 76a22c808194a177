//! Who a certificate is for: an identity or an error, whatever the bytes; and any text as a SPIFFE ID.
#![no_main]

use ambit_core::model::Identity;
use ambit_hbone::tls;
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

fuzz_target!(|data: &[u8]| {
    if let Ok(identity) = tls::identity(&CertificateDer::from(data)) {
        is_the_same(&identity);
    }
    if let Some(Ok(identity)) = std::str::from_utf8(data).ok().map(str::parse) {
        is_the_same(&identity);
    }
});

/// One identity, one way of writing it: policies compare texts.
fn is_the_same(identity: &Identity) {
    let text = identity.to_string();
    assert_eq!(text.parse::<Identity>().as_ref(), Ok(identity));
    let principal = identity.principal();
    assert_eq!(text.strip_prefix("spiffe://"), Some(&*principal));
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    assert!(principal.chars().all(bare) && principal.split('/').count() == 5, "{principal}");
}
