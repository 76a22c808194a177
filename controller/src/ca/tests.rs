//! What is signed is judged by another implementation (webpki, through rustls), as peers will judge it.

use std::sync::Arc;

use rcgen::{CertificateSigningRequest, KeyUsagePurpose as Usage, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use x509_parser::prelude::FromDer;

use super::*;

const DAY: Duration = Duration::from_hours(24);

struct Bench {
    folder: Folder,
    authority: Authority,
    now: SystemTime,
    _temporary: tempfile::TempDir,
}

fn bench() -> Bench {
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder::open(temporary.path()).unwrap();
    let now = UNIX_EPOCH + Duration::from_hours(500_000);
    let authority = Authority::open(&folder, &TrustDomain::default(), DAY, now).unwrap();
    Bench { folder, authority, now, _temporary: temporary }
}

fn identity(text: &str) -> Identity {
    text.parse().unwrap()
}

fn web() -> Identity {
    identity("spiffe://cluster.local/ns/shop/sa/web")
}

fn request(key: &KeyPair, names: &[&str]) -> CertificateSigningRequest {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
    params.serialize_request(key).unwrap()
}

fn csr(names: &[&str]) -> String {
    request(&KeyPair::generate().unwrap(), names).pem().unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(der(authority.root_pem())).unwrap();
    Arc::new(roots)
}

/// Whether a peer that trusts `authority` takes the chain from a client at `when`.
fn trusted(authority: &Authority, chain: &[String], when: SystemTime) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority), provider).build().unwrap();
    let when = UnixTime::since_unix_epoch(when.duration_since(UNIX_EPOCH).unwrap());
    let chain: Vec<_> = chain.iter().map(|pem| der(pem)).collect();
    verifier.verify_client_cert(&chain[0], &chain[1..], when).map(|_| ())
}

#[test]
fn fields_of_a_workload_certificate() {
    let Bench { authority, now, .. } = bench();
    let chain = authority.sign(&web(), &csr(&[&web().to_string()]), DAY, now).unwrap();
    assert_eq!(chain.len(), 2, "leaf and root");
    assert_eq!(chain[1], authority.root_pem());
    trusted(&authority, &chain, now).unwrap();

    let leaf = der(&chain[0]);
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "there is no other subject");
    assert_eq!(names.value.general_names, [GeneralName::URI(&web().to_string())]);
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    assert!(!leaf.is_ca());
    assert!(leaf.subject().as_raw().len() <= 2, "an empty subject");
    assert!(leaf.raw_serial().len() <= 20 && leaf.raw_serial()[0] & 0x80 == 0);
}

#[test]
fn serial_numbers_differ_for_the_same_key() {
    let Bench { authority, now, .. } = bench();
    let csr = csr(&[]);
    let serial = || {
        let chain = authority.sign(&web(), &csr, DAY, now).unwrap();
        let leaf = der(&chain[0]);
        let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
        leaf.raw_serial().to_vec()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn lifetimes_are_limited() {
    let Bench { authority, now, .. } = bench();
    let seconds = Duration::from_secs;
    // The requested lifetime; the granted one from now; the backdating.
    let rows = [
        ("a day", DAY, DAY, seconds(60)),
        ("a week is cut to a day", DAY * 7, DAY, seconds(60)),
        ("none requested", Duration::ZERO, DAY, seconds(60)),
        ("ten seconds", seconds(10), seconds(10), seconds(1)),
        ("ten minutes", seconds(600), seconds(600), seconds(60)),
        ("less than a second", Duration::from_millis(1), seconds(1), seconds(1)),
    ];
    for (name, ttl, lasts, back) in rows {
        let chain = authority.sign(&web(), &csr(&[]), ttl, now).unwrap();
        let leaf = der(&chain[0]);
        let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
        let at =
            |time: SystemTime| i64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        assert_eq!(leaf.validity().not_after.timestamp(), at(now + lasts), "{name}");
        assert_eq!(leaf.validity().not_before.timestamp(), at(now - back), "{name}");
        trusted(&authority, &chain, now - back).expect(name);
        trusted(&authority, &chain, now - back - seconds(2)).expect_err(name);
        trusted(&authority, &chain, now + lasts + seconds(2)).expect_err(name);
    }
}

#[test]
fn no_leaf_outlives_the_root() {
    let Bench { folder, now, _temporary, .. } = bench();
    let late = now + ROOT_LIFETIME - Duration::from_hours(1);
    let authority = Authority::open(&folder, &TrustDomain::default(), DAY, late).unwrap();
    let chain = authority.sign(&web(), &csr(&[]), DAY, late).unwrap();
    let leaf = der(&chain[0]);
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
    let end = UNIX_EPOCH + Duration::from_secs(u64::try_from(leaf.validity().not_after.timestamp()).unwrap());
    assert_eq!(end, authority.root_not_after());
    let after = now + ROOT_LIFETIME;
    let gone = Authority::open(&folder, &TrustDomain::default(), DAY, after);
    assert!(matches!(gone, Err(Error::Expired)));
}

#[test]
fn invalid_requests_are_refused() {
    let Bench { authority, now, .. } = bench();
    let own = web().to_string();
    let forged = {
        let good = request(&KeyPair::generate().unwrap(), &[&own]);
        let mut bytes = good.der().to_vec();
        // The signature stands at the end.
        let last = bytes.len() - 5;
        bytes[last] ^= 1;
        pem_of(&bytes)
    };
    let swapped = {
        // The key of one request under the signature of another: no possession is proved.
        let (a, b) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut bytes = request(&a, &[&own]).der().to_vec();
        let (from, to) = (a.public_key_raw().to_vec(), b.public_key_raw());
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        pem_of(&bytes)
    };
    let with_key = |algorithm| request(&KeyPair::generate_for(algorithm).unwrap(), &[&own]).pem().unwrap();
    let other = "spiffe://cluster.local/ns/shop/sa/db";
    let trailing = {
        let mut bytes = request(&KeyPair::generate().unwrap(), &[&own]).der().to_vec();
        bytes.extend([0, 0]);
        pem_of(&bytes)
    };
    let certificate = authority.root_pem().to_owned();
    let rows = [
        ("empty", String::new(), CsrError::Form),
        ("no PEM", "hello".to_owned(), CsrError::Form),
        ("a certificate", certificate, CsrError::Form),
        ("too long", "x".repeat(20_000), CsrError::Form),
        ("bytes behind it", trailing, CsrError::Form),
        ("a broken signature", forged, CsrError::Signature),
        ("another's key", swapped, CsrError::Signature),
        ("P-384", with_key(&PKCS_ECDSA_P384_SHA384), CsrError::Key),
        ("Ed25519", with_key(&PKCS_ED25519), CsrError::Key),
    ];
    for (name, csr, expected) in rows {
        match authority.sign(&web(), &csr, DAY, now) {
            Err(Error::Csr(found)) => assert_eq!(found, expected, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    for (name, names) in
        [("another identity", vec![other]), ("its own and another", vec![own.as_str(), other])]
    {
        let refused = authority.sign(&web(), &csr(&names), DAY, now);
        assert!(matches!(refused, Err(Error::Csr(CsrError::Name { .. }))), "{name}: {refused:?}");
    }
    let dns = CertificateParams::new(["cart.shop".to_owned()]).unwrap();
    let dns = dns.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    assert!(matches!(authority.sign(&web(), &dns, DAY, now), Err(Error::Csr(CsrError::Name { .. }))));
}

fn pem_of(der: &[u8]) -> String {
    let block = |bytes: &[u8]| bytes.chunks(3).map(base64).collect::<String>();
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", block(der))
}

/// Three bytes (or fewer, at the end) as four letters.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let word =
        bytes.iter().fold(0_usize, |word, byte| (word << 8) | usize::from(*byte)) << (8 * (3 - bytes.len()));
    let letter = |place: usize| char::from(LETTERS[(word >> (18 - 6 * place)) & 63]);
    (0..4).map(|place| if place <= bytes.len() { letter(place) } else { '=' }).collect()
}

#[test]
fn other_fields_of_a_request_are_ignored() {
    let Bench { authority, now, .. } = bench();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![Usage::KeyCertSign];
    params.distinguished_name = common_name("root");
    let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let chain = authority.sign(&web(), &csr, DAY, now).unwrap();
    let leaf = der(&chain[0]);
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
    assert!(!leaf.is_ca());
    assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert!(leaf.subject().iter_common_name().next().is_none());
}

#[test]
fn the_root_survives_a_restart_and_is_created_once() {
    let Bench { folder, authority, now, _temporary } = bench();
    let again = Authority::open(&folder, &TrustDomain::default(), DAY, now).unwrap();
    assert_eq!(again.root_pem(), authority.root_pem());
    let chain = again.sign(&web(), &csr(&[]), DAY, now).unwrap();
    trusted(&authority, &chain, now).unwrap();
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(folder.path(FILE)).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn certificates_of_another_root_are_not_trusted() {
    let (one, two) = (bench(), bench());
    let chain = one.authority.sign(&web(), &csr(&[]), DAY, one.now).unwrap();
    trusted(&one.authority, &chain, one.now).unwrap();
    trusted(&two.authority, &chain, two.now).unwrap_err();
}

#[test]
fn an_unusable_root_is_an_error_and_is_kept() {
    let Bench { folder, now, _temporary, .. } = bench();
    let good = folder.read_secret(FILE).unwrap().unwrap();
    let end = good.find("-----BEGIN PRIVATE KEY").unwrap();
    let (certificate, key) = good.split_at(end);
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    let rows = [
        ("no key", certificate.to_owned(), "no private key"),
        ("no certificate", key.to_owned(), "no certificate"),
        ("another key", format!("{certificate}{other_key}"), "does not match its certificate"),
        ("empty", String::new(), "no private key"),
    ];
    for (name, text, expected) in rows {
        folder.write_secret(FILE, &text).unwrap();
        let error = Authority::open(&folder, &TrustDomain::default(), DAY, now).unwrap_err();
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert_eq!(folder.read_secret(FILE).unwrap().unwrap(), text, "{name}: kept");
    }
    // Either order is fine: an administrator may have written it.
    folder.write_secret(FILE, &format!("{key}{certificate}")).unwrap();
    Authority::open(&folder, &TrustDomain::default(), DAY, now).unwrap();
}

#[test]
fn a_root_of_another_trust_domain_is_refused() {
    let Bench { folder, now, _temporary, .. } = bench();
    let error = Authority::open(&folder, &"example.org".parse().unwrap(), DAY, now).unwrap_err();
    assert!(
        matches!(&error, Error::TrustDomain { found, .. } if found == "spiffe://cluster.local"),
        "{error}"
    );
}

#[test]
fn fields_of_the_controllers_certificate() {
    let Bench { authority, now, .. } = bench();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(&authority), provider).build().unwrap();
    let when = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap());
    for (served, requested, good) in [
        ("ambit-controller", "ambit-controller", true),
        ("ambit-controller", "other", false),
        ("10.0.0.1", "10.0.0.1", true),
        ("10.0.0.1", "10.0.0.2", false),
    ] {
        let serving = authority.serving(served, now).unwrap();
        let name = ServerName::try_from(requested).unwrap();
        let verdict = verifier.verify_server_cert(&serving.chain[0], &serving.chain[1..], &name, &[], when);
        assert_eq!(verdict.is_ok(), good, "{served} requested as {requested}: {verdict:?}");
        assert_eq!(serving.not_after, now + SERVING_LIFETIME);
        assert_eq!(serving.renew_at, now + SERVING_LIFETIME / 2);
    }
    // Near the end of the CA: half of what is left.
    let last_hour = authority.not_after() - Duration::from_hours(1);
    let serving = authority.serving("c", last_hour).unwrap();
    assert_eq!(serving.not_after, authority.not_after());
    assert_eq!(serving.renew_at, last_hour + Duration::from_mins(30));
    let after = authority.serving("c", authority.not_after());
    assert!(matches!(after, Err(Error::SignerExpired { .. })));
}
