//! CAs that fit together and CAs that do not.

use rcgen::{
    BasicConstraints, CertificateParams, IsCa, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
};

use super::*;

const DAY: Duration = Duration::from_hours(24);

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_hours(500_000)
}

fn authority(material: &Material) -> Result<Authority, Error> {
    material.authority(&TrustDomain::default(), DAY, now())
}

/// A certificate for a key, by an issuer or self-signed.
fn certificate(key: &KeyPair, ca: bool, issuer: Option<(&str, &KeyPair)>, until: SystemTime) -> String {
    let mut params = CertificateParams::default();
    params.is_ca = if ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
    params.distinguished_name = super::super::common_name(if issuer.is_some() { "under" } else { "top" });
    super::super::set_validity(&mut params, now() - DAY, until).unwrap();
    match issuer {
        Some((pem, issuer_key)) => {
            let issuer = Issuer::from_ca_cert_pem(pem, issuer_key).unwrap();
            params.signed_by(key, &issuer).unwrap().pem()
        }
        None => params.self_signed(key).unwrap().pem(),
    }
}

#[test]
fn a_created_ca_signs_and_is_renewed_in_time() {
    let made = Material::make(&TrustDomain::default(), now()).unwrap();
    let authority_ = authority(&made).unwrap();
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let chain = authority_.sign(&identity, &csr, DAY, now()).unwrap();
    assert_eq!(chain.len(), 3, "leaf, intermediate, root");
    assert_eq!(chain[2], made.roots()[0]);
    assert_eq!(authority_.serving("c", now()).unwrap().chain.len(), 3);

    assert_eq!(made.renewed(&TrustDomain::default(), now() + 200 * DAY).unwrap(), None);
    let renewed = made.renewed(&TrustDomain::default(), now() + 300 * DAY).unwrap().unwrap();
    assert_eq!(renewed.roots(), made.roots());
    assert_ne!(renewed.fingerprint(), made.fingerprint());
    let later = now() + 300 * DAY;
    assert!(
        renewed.authority(&TrustDomain::default(), DAY, later).unwrap().not_after > made.not_after().unwrap()
    );
}

#[test]
fn user_ca_is_validated() {
    let far = now() + 1_000 * DAY;
    let root_key = KeyPair::generate().unwrap();
    let root = certificate(&root_key, true, None, far);
    let other_root = certificate(&KeyPair::generate().unwrap(), true, None, far);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let signing = certificate(&key, true, Some((&root, &root_key)), far);
    let leaf = certificate(&key, false, Some((&root, &root_key)), far);
    let ended = certificate(&key, true, Some((&root, &root_key)), now() - DAY / 2);
    let other_key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let ed = certificate(&other_key, true, Some((&root, &root_key)), far);
    let (key, other_key, root_key) =
        (key.serialize_pem(), other_key.serialize_pem(), root_key.serialize_pem());
    let both = format!("{other_root}{root}");
    let ended_root = certificate(&KeyPair::generate().unwrap(), true, None, now() - DAY / 2);
    let with_ended = format!("{ended_root}{root}");
    let long = format!("{signing}{root}");
    let rows = [
        ("intermediate", &*signing, &*key, &*signing, &*root, Ok(2)),
        ("without a chain", &signing, &key, "", &root, Ok(2)),
        ("the root in the chain", &signing, &key, &long, &root, Ok(2)),
        ("two roots", &signing, &key, &signing, &both, Ok(2)),
        ("an expired root and its own", &signing, &key, &signing, &with_ended, Ok(2)),
        ("only an expired root", &signing, &key, &signing, &ended_root, Err("every root has expired")),
        ("the root signs", &root, &root_key, "", &root, Ok(1)),
        ("another kind of key", &ed, &other_key, &ed, &root, Ok(2)),
        ("another root", &signing, &key, &signing, &other_root, Err("failed to verify as a peer")),
        ("no root", &signing, &key, &signing, "", Err("root-cert.pem")),
        ("no certificate", "", &key, "", &root, Err("ca-cert.pem")),
        ("no key", &signing, "", &signing, &root, Err("no private key")),
        ("another's key", &signing, &other_key, &signing, &root, Err("does not match")),
        ("not a CA", &leaf, &key, &leaf, &root, Err("is not a CA certificate")),
        ("expired", &ended, &key, &ended, &root, Err("has expired")),
        ("broken", "-----BEGIN CERTIFICATE-----\nx", &key, "", &root, Err("ca-cert.pem")),
    ];
    for (name, ca_cert, ca_key, cert_chain, root_cert, expected) in rows {
        let material = Material::from_user(UserCa { ca_cert, ca_key, cert_chain, root_cert });
        let found = material.and_then(|material| authority(&material));
        match (found, expected) {
            (Ok(authority), Ok(above)) => assert_eq!(authority.above.len(), above, "{name}"),
            (Err(error), Err(message)) => assert!(error.to_string().contains(message), "{name}: {error}"),
            (found, _) => panic!("{name}: {found:?}"),
        }
    }
}

#[test]
fn rsa_keys_as_openssl_writes_them() {
    let far = now() + 1_000 * DAY;
    let root_key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let root = certificate(&root_key, true, None, far);
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let signing = certificate(&key, true, Some((&root, &root_key)), far);
    let brought =
        UserCa { ca_cert: &signing, ca_key: &key.serialize_pem(), cert_chain: &signing, root_cert: &root };
    authority(&Material::from_user(brought).unwrap()).unwrap();
}
