//! The messages of mismatches.

use super::*;

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().expect("an identity")
}

#[test]
fn mismatch_names_expected_and_presented_identity() {
    let rows: [(&[&str], &str); 4] = [
        (&[], "expected none, got"),
        (&["cart"], "expected spiffe://cluster.local/ns/shop/sa/cart, got"),
        (
            &["cart", "api"],
            "expected one of spiffe://cluster.local/ns/shop/sa/cart, \
             spiffe://cluster.local/ns/shop/sa/api, got",
        ),
        (&["a", "b", "c", "d", "e", "f"], "spiffe://cluster.local/ns/shop/sa/d, 2 more, got"),
    ];
    for (expected, says) in rows {
        let expected: Box<[Identity]> = expected.iter().copied().map(identity).collect();
        let error = NameError::Mismatch { expected, presented: identity("mallory") }.to_string();
        assert!(error.starts_with("identity mismatch: expected "), "{error}");
        assert!(error.contains(says), "{error}");
        assert!(error.ends_with(" spiffe://cluster.local/ns/shop/sa/mallory"), "{error}");
    }
}

#[test]
fn trust_domain_mismatch_names_both() {
    let expected = ["cluster.local", "old.example"].map(|name| name.parse().expect("a trust domain"));
    let error = NameError::TrustDomain { expected: expected.into(), presented: identity("mallory") };
    assert_eq!(
        error.to_string(),
        "identity mismatch: expected trust domain one of cluster.local, old.example, \
         got spiffe://cluster.local/ns/shop/sa/mallory"
    );
}
