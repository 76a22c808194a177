//! The nouns that are parsed from text.

use ambit_core::model::{Identity, IdentityError, IpBlock, TrustDomain};
use proptest::prelude::*;

use crate::build::ip;

#[test]
fn identity_parsing() {
    let rows = [
        ("spiffe://cluster.local/ns/shop/sa/web", true),
        ("spiffe://td_1.example-2/ns/a/sa/b", true),
        ("cluster.local/ns/shop/sa/web", false),
        ("SPIFFE://cluster.local/ns/shop/sa/web", false),
        ("spiffe://cluster.local/ns/shop/sa/web/", false),
        ("spiffe://cluster.local/ns/shop/sa/", false),
        ("spiffe://cluster.local/ns//sa/web", false),
        ("spiffe:///ns/shop/sa/web", false),
        ("spiffe://Cluster.local/ns/shop/sa/web", false),
        ("spiffe://cluster.local:80/ns/shop/sa/web", false),
        ("spiffe://cluster.local/sa/web/ns/shop", false),
        ("spiffe://cluster.local/ns/shop/sa/web?x", false),
        ("spiffe://cluster.local/ns/shop/sa/web#x", false),
        ("spiffe://cluster.local/ns/sh%6fp/sa/web", false),
        ("spiffe://cluster.local/ns/../sa/web", false),
        ("spiffe://cluster.local/ns/shop/sa/a b", false),
        ("spiffe://cluster.local/ns/shop/sa/web_1.x", true),
        ("", false),
    ];
    for (text, valid) in rows {
        let parsed: Result<Identity, IdentityError> = text.parse();
        assert_eq!(parsed.is_ok(), valid, "{text}: {parsed:?}");
        if let Ok(identity) = parsed {
            assert_eq!(identity.to_string(), text);
            assert_eq!(format!("spiffe://{}", identity.principal()), text);
        }
    }
}

#[test]
fn trust_domain_parsing() {
    for (text, valid) in [("cluster.local", true), ("", false), ("a/b", false), ("Ä", false), ("a b", false)]
    {
        assert_eq!(text.parse::<TrustDomain>().is_ok(), valid, "{text:?}");
    }
    assert!("a".repeat(255).parse::<TrustDomain>().is_ok());
    assert!("a".repeat(256).parse::<TrustDomain>().is_err());
}

#[test]
fn ip_block_parsing() {
    let rows = [
        ("10.0.0.0/8", "10.255.0.1", true),
        ("10.0.0.0/8", "11.0.0.1", false),
        ("10.9.9.9/8", "10.0.0.1", true),
        ("10.0.0.1", "10.0.0.1", true),
        ("10.0.0.1", "10.0.0.2", false),
        ("fd00::/8", "fd12::1", true),
        ("fd00::1", "fd00::1", true),
        ("::/0", "10.0.0.1", false),
        ("0.0.0.0/0", "::1", false),
        ("10.0.0.0/8", "::ffff:10.0.0.1", true),
        ("::ffff:10.0.0.0/104", "10.0.0.1", true),
        ("::ffff:10.0.0.0/104", "::ffff:11.0.0.1", false),
        ("::ffff:0:0/96", "192.0.2.1", true),
    ];
    for (block, address, contains) in rows {
        let parsed: IpBlock = block.parse().unwrap_or_else(|_| panic!("{block} is a block"));
        assert_eq!(parsed.contains(ip(address)), contains, "{block} and {address}");
    }
    for text in ["10.0.0.0/33", "10.0.0/8", "10.0.0.0/", "fd00::/129", "shop", ""] {
        assert!(text.parse::<IpBlock>().is_err(), "{text:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_an_identity_or_an_error(text in ".*") {
        if let Ok(identity) = text.parse::<Identity>() {
            prop_assert_eq!(identity.to_string(), text);
        }
    }

    #[test]
    fn identities_round_trip_as_text(
        domain in "[a-z0-9._-]{1,20}",
        namespace in "[a-z0-9-]{1,20}",
        account in "[a-z0-9][a-z0-9.-]{0,20}",
    ) {
        let identity = Identity {
            trust_domain: domain.parse().expect("valid"),
            namespace: namespace.as_str().into(),
            service_account: account.as_str().into(),
        };
        prop_assert_eq!(identity.to_string().parse::<Identity>(), Ok(identity));
    }
}
