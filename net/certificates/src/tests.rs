//! A scripted CA under paused time: what the manager does when the signer is good, slow, wrong or gone.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_core::model::Identity;
use ambit_daemon_kit::roots;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use tokio::time::{Instant, advance, sleep, timeout};

use crate::clock::Clock;
use crate::{Certificates, Error, Settings, Signer};

const TEN: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_hours(24);

/// What the signer does with one request; when the script has ended it signs.
#[derive(Clone, Copy, Debug)]
enum Step {
    Sign,
    Fail,
    Hang,
    Slow(Duration),
    WrongIdentity,
    TwoIdentities,
    OtherKey,
    Expired,
    NotYetValid,
    ExpiredRoot,
    ClientOnly,
    OtherRoot,
    NoRoot,
    NotPem,
}

type Ca = CertifiedIssuer<'static, KeyPair>;

/// A CA, its script, and when it was asked.
struct Script {
    ca: Ca,
    other: Ca,
    clock: Clock,
    steps: Mutex<VecDeque<Step>>,
    asked: Mutex<Vec<Instant>>,
}

#[derive(Clone)]
struct Scripted(Arc<Script>);

impl Signer for Scripted {
    type Error = String;

    async fn sign(&self, identity: &Identity, csr_pem: String, ttl: Duration) -> Result<Vec<String>, String> {
        let script = &self.0;
        script.asked.lock().push(Instant::now());
        let step = script.steps.lock().pop_front().unwrap_or(Step::Sign);
        match step {
            Step::Fail => return Err("the CA is unavailable".to_owned()),
            Step::Hang => std::future::pending().await,
            Step::Slow(wait) => sleep(wait).await,
            _ => {}
        }
        Ok(script.chain(step, identity, &csr_pem, ttl))
    }
}

impl Script {
    fn chain(&self, step: Step, identity: &Identity, csr_pem: &str, ttl: Duration) -> Vec<String> {
        let now = (self.clock)();
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem).expect("a request");
        let own_name = SanType::URI(identity.to_string().try_into().expect("ASCII"));
        assert_eq!(
            csr.params.subject_alt_names,
            std::slice::from_ref(&own_name),
            "the request names the identity"
        );
        assert_eq!(csr.public_key.algorithm(), &rcgen::PKCS_ECDSA_P256_SHA256);
        let stranger = SanType::URI("spiffe://cluster.local/ns/x/sa/y".try_into().expect("ASCII"));
        csr.params.subject_alt_names = match step {
            Step::WrongIdentity => vec![stranger],
            Step::TwoIdentities => vec![own_name, stranger],
            _ => vec![own_name],
        };
        csr.params.not_before = (now - Duration::from_secs(1)).into();
        csr.params.not_after = (now + ttl).into();
        match step {
            Step::Expired => csr.params.not_after = (now - Duration::from_millis(1)).into(),
            Step::NotYetValid => csr.params.not_before = (now + Duration::from_secs(5)).into(),
            _ => {}
        }
        csr.params.extended_key_usages = match step {
            Step::ClientOnly => vec![ExtendedKeyUsagePurpose::ClientAuth],
            _ => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
        };
        let root = match step {
            Step::ExpiredRoot => ca(now - DAY, now - Duration::from_secs(1)),
            Step::OtherRoot => return vec![sign(&csr, &self.ca), self.other.pem()],
            _ => return self.chain_of(step, &csr),
        };
        vec![sign(&csr, &root), root.pem()]
    }

    fn chain_of(&self, step: Step, csr: &CertificateSigningRequestParams) -> Vec<String> {
        let leaf = match step {
            Step::NotPem => return vec!["-----BEGIN CERTIFICATE-----\nnonsense".to_owned()],
            Step::OtherKey => {
                let key = KeyPair::generate().expect("a key");
                csr.params.clone().signed_by(&key, &self.ca).expect("a certificate").pem()
            }
            _ => sign(csr, &self.ca),
        };
        if matches!(step, Step::NoRoot) { vec![leaf] } else { vec![leaf, self.ca.pem()] }
    }
}

fn sign(csr: &CertificateSigningRequestParams, ca: &Ca) -> String {
    csr.signed_by(ca).expect("a certificate").pem()
}

fn ca(not_before: SystemTime, not_after: SystemTime) -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.distinguished_name.push(rcgen::DnType::CommonName, "test root");
    Ca::self_signed(params, KeyPair::generate().expect("a key")).expect("a root")
}

struct Scene {
    certificates: Certificates,
    script: Arc<Script>,
    clock: Clock,
}

/// The clock follows tokio's paused time. `steps` come first, then everything is signed.
fn scene(ttl: Duration, steps: &[Step]) -> Scene {
    let (start, instant) = (SystemTime::now(), Instant::now());
    let clock: Clock = Arc::new(move || start + instant.elapsed());
    let root = || ca(start - DAY, start + 3650 * DAY);
    let script = Arc::new(Script {
        ca: root(),
        other: root(),
        clock: clock.clone(),
        steps: Mutex::new(steps.iter().copied().collect()),
        asked: Mutex::default(),
    });
    // The bootstrap file's root is another than the CA's: as while roots rotate.
    let settings = Settings { ttl, roots: script.other.pem() };
    let certificates = Certificates::with_clock(Scripted(script.clone()), &settings, clock.clone())
        .expect("the settings are good");
    Scene { certificates, script, clock }
}

impl Scene {
    fn asked(&self) -> usize {
        self.script.asked.lock().len()
    }
}

fn cart() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().expect("an identity")
}

/// Longer than any single wait of the manager for a certificate of a day.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_mins(2), future).await.expect("it happens soon")
}

#[tokio::test(start_paused = true)]
async fn concurrent_callers_share_one_request() {
    let scene = scene(DAY, &[Step::Slow(Duration::from_secs(1))]);
    let identity = cart();
    let calls = (0..50).map(|_| scene.certificates.get(&identity));
    let all = soon(futures::future::join_all(calls)).await;
    assert_eq!(scene.asked(), 1);
    let first = all[0].as_ref().expect("a certificate");
    assert!(all.iter().all(|one| Arc::ptr_eq(one.as_ref().expect("a certificate"), first)));
    assert_eq!(first.identity, identity);
}

#[tokio::test(start_paused = true)]
async fn short_lived_certificate_is_renewed_in_time() {
    let scene = scene(TEN, &[]);
    let lease = scene.certificates.keep(&cart());
    let mut changes = scene.certificates.changes();
    soon(lease.get()).await.expect("the first one");
    for tenth in 0..1200 {
        sleep(Duration::from_millis(100)).await;
        let current =
            scene.certificates.current(&cart()).unwrap_or_else(|| panic!("none after {tenth} tenths"));
        let left = current.not_after.duration_since((scene.clock)()).expect("it has not expired");
        assert!(left >= Duration::from_secs(3), "only {left:?} left after {tenth} tenths");
    }
    // 120 s at 5 s each, ±10 % and the whole seconds of X.509.
    let asked = scene.asked();
    assert!((22..=32).contains(&asked), "{asked}");
    let mut told = 0;
    while let Ok(identity) = changes.try_recv() {
        assert_eq!(identity, cart());
        told += 1;
    }
    assert_eq!(told, asked, "every new one is announced");
}

#[tokio::test(start_paused = true)]
async fn long_lived_certificate_is_renewed_at_half_life() {
    let scene = scene(DAY, &[]);
    let lease = scene.certificates.keep(&cart());
    let first = soon(lease.get()).await.expect("the first one");
    let mut watch = lease.watch();
    watch.borrow_and_update();
    timeout(DAY, watch.changed()).await.expect("within its life").expect("kept");
    let asked = scene.script.asked.lock().clone();
    let waited = (asked[1] - asked[0]).as_secs_f64() / 3600.0;
    assert!((10.7..=13.3).contains(&waited), "{waited} h");
    assert!(lease.current().is_some_and(|second| !Arc::ptr_eq(&first, &second)));
}

#[tokio::test(start_paused = true)]
async fn certificate_serves_until_expiry_while_renewals_fail() {
    let steps = [&[Step::Sign][..], &[Step::Fail; 30], &[Step::Hang; 3]].concat();
    let scene = scene(TEN, &steps);
    let lease = scene.certificates.keep(&cart());
    let first = soon(lease.get()).await.expect("the first one");
    let mut failing = 0;
    while (scene.clock)() < first.not_after {
        let current = lease.current().expect("the old one until it expires");
        assert!(Arc::ptr_eq(&current, &first));
        failing = scene.asked() - 1;
        sleep(Duration::from_millis(50)).await;
    }
    assert!(failing >= 4, "only {failing} attempts before it expired");
    assert!(lease.current().is_none(), "expired");
    let error = lease.get().await.expect_err("expired, and no other");
    assert!(error.chain().contains("the CA is unavailable"), "{}", error.chain());
    // The CA recovers; no caller has to ask.
    let mut watch = lease.watch();
    watch.borrow_and_update();
    soon(watch.changed()).await.expect("kept");
    let second = lease.current().expect("a new one");
    assert!(!Arc::ptr_eq(&first, &second));
}

#[tokio::test(start_paused = true)]
async fn wrong_certificate_at_renewal_keeps_the_old_one() {
    let scene = scene(TEN, &[Step::Sign, Step::WrongIdentity, Step::Expired, Step::Sign]);
    let lease = scene.certificates.keep(&cart());
    let first = soon(lease.get()).await.expect("the first one");
    let mut watch = lease.watch();
    watch.borrow_and_update();
    soon(watch.changed()).await.expect("kept");
    assert_eq!(scene.asked(), 4, "two were refused");
    assert!((scene.clock)() < first.not_after, "and the third came in time");
}

#[tokio::test(start_paused = true)]
async fn wrong_certificates_are_refused() {
    for (name, step, says) in [
        ("another identity", Step::WrongIdentity, "got [\"spiffe://cluster.local/ns/x/sa/y\"]"),
        ("one identity too many", Step::TwoIdentities, "got [\"spiffe://cluster.local/ns/shop/sa/cart\", "),
        ("another key", Step::OtherKey, "failed to pair the certificate with the requested key"),
        ("expired", Step::Expired, "chain expired at 20"),
        ("not yet valid", Step::NotYetValid, "chain is not valid before 20"),
        ("expired root", Step::ExpiredRoot, "chain expired at 20"),
        ("a root that did not sign it", Step::OtherRoot, "failed to verify the chain for a TLS client"),
        ("for clients only", Step::ClientOnly, "failed to verify the chain for a TLS server"),
        ("no root", Step::NoRoot, "chain has 1 certificates, need at least leaf and root"),
        ("not PEM", Step::NotPem, "failed to parse the chain"),
    ] {
        let scene = scene(DAY, &[step]);
        let error = soon(scene.certificates.get(&cart())).await.expect_err(name);
        assert!(matches!(*error, Error::Refused { .. }), "{name}: {error:?}");
        let text = error.chain();
        assert!(
            text.starts_with("failed to verify certificate for spiffe://cluster.local/ns/shop/sa/cart: "),
            "{text}"
        );
        assert!(text.contains(says), "{name}: {text}");
        assert!(scene.certificates.current(&cart()).is_none(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_ca_fails_callers_fail_at_once_and_requests_back_off() {
    let scene = scene(DAY, &[Step::Fail; 8]);
    let lease = scene.certificates.keep(&cart());
    soon(lease.get()).await.expect_err("the first attempt fails");
    let before = Instant::now();
    for _ in 0..100 {
        let error = lease.get().await.expect_err("the next attempt is not due");
        assert!(matches!(*error, Error::Sign { .. }), "{error:?}");
    }
    assert_eq!((before.elapsed(), scene.asked()), (Duration::ZERO, 1));
    let mut watch = lease.watch();
    timeout(Duration::from_mins(5), watch.changed()).await.expect("within eight waits").expect("kept");
    let asked = scene.script.asked.lock().clone();
    let waits: Vec<f64> = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    assert_eq!(waits.len(), 8);
    for (wait, middle) in waits.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]) {
        let most = f64::min(middle * 1.25, 60.0) + 0.01;
        assert!((middle * 0.75..=most).contains(wait), "{waits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn hanging_signer_times_out() {
    for (name, ttl, limit) in [("a day", DAY, 10.0), ("ten seconds", TEN, 2.5)] {
        let scene = scene(ttl, &[Step::Hang]);
        let before = Instant::now();
        let error = soon(scene.certificates.get(&cart())).await.expect_err(name);
        assert!(matches!(*error, Error::SignTimeout { .. }), "{name}: {error:?}");
        let waited = before.elapsed().as_secs_f64();
        assert!((waited - limit).abs() < 0.01, "{name}: {waited}");
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_lease_forgets_the_key() {
    let scene = scene(TEN, &[]);
    let (one, two) = (scene.certificates.keep(&cart()), scene.certificates.keep(&cart()));
    soon(one.get()).await.expect("a certificate");
    drop(one);
    assert!(scene.certificates.current(&cart()).is_some(), "one lease is left");
    sleep(TEN).await;
    assert!(scene.asked() >= 2, "and renews it");
    let mut watch = two.watch();
    drop(two);
    assert!(scene.certificates.current(&cart()).is_none());
    assert!(scene.certificates.status().is_empty());
    soon(watch.wait_for(Option::is_none)).await.expect("the key is dropped");
    let asked = scene.asked();
    sleep(10 * TEN).await;
    assert_eq!(scene.asked(), asked, "nothing is renewed");
}

#[tokio::test(start_paused = true)]
async fn forgetting_an_identity_fails_waiting_callers() {
    let scene = scene(DAY, &[Step::Hang]);
    let lease = scene.certificates.keep(&cart());
    let certificates = scene.certificates.clone();
    let waiting = tokio::spawn(async move { certificates.get(&cart()).await });
    while scene.asked() == 0 {
        tokio::task::yield_now().await;
    }
    drop(lease);
    let error = waiting.await.expect("no panic").expect_err("forgotten");
    assert!(matches!(*error, Error::Forgotten { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn certificate_without_lease_is_not_renewed() {
    let scene = scene(TEN, &[]);
    soon(scene.certificates.get(&cart())).await.expect("a certificate");
    soon(scene.certificates.get(&cart())).await.expect("the same");
    assert_eq!(scene.asked(), 1);
    sleep(10 * TEN).await;
    assert_eq!(scene.asked(), 1);
    assert!(scene.certificates.current(&cart()).is_none());
}

#[tokio::test(start_paused = true)]
async fn clock_jump_renews_within_a_minute() {
    let base = scene(DAY, &[]);
    let jump = Arc::new(Mutex::new(Duration::ZERO));
    let (clock, by) = (base.clock.clone(), jump.clone());
    let clock: Clock = Arc::new(move || clock() + *by.lock());
    let settings = Settings { ttl: DAY, roots: base.script.other.pem() };
    let script = Arc::new(Script {
        ca: ca(clock() - DAY, clock() + 3650 * DAY),
        other: ca(clock() - DAY, clock() + 3650 * DAY),
        clock: clock.clone(),
        steps: Mutex::default(),
        asked: Mutex::default(),
    });
    let certificates =
        Certificates::with_clock(Scripted(script.clone()), &settings, clock).expect("the settings are good");
    let lease = certificates.keep(&cart());
    soon(lease.get()).await.expect("a certificate");
    *jump.lock() = 2 * DAY;
    assert!(lease.current().is_none(), "it has expired");
    advance(Duration::from_secs(61)).await;
    soon(lease.get()).await.expect("renewed within a minute");
}

/// The keys of some roots, in an order of their own.
fn subjects(store: &RootCertStore) -> Vec<Vec<u8>> {
    let mut keys: Vec<_> =
        store.roots.iter().map(|root| root.subject_public_key_info.as_ref().to_vec()).collect();
    keys.sort();
    keys
}

fn store(pems: &[String]) -> RootCertStore {
    let mut store = RootCertStore::empty();
    for pem in pems {
        store.add(roots::read(pem).expect("PEM").remove(0)).expect("a root");
    }
    store
}

#[tokio::test(start_paused = true)]
async fn chain_root_and_bootstrap_root_are_trusted() {
    let scene = scene(DAY, &[]);
    let certificate = soon(scene.certificates.get(&cart())).await.expect("a certificate");
    let expected = store(&[scene.script.ca.pem(), scene.script.other.pem()]);
    assert_eq!(subjects(&certificate.roots), subjects(&expected));
    assert_eq!(certificate.key.cert.len(), 1, "the root is not shown to peers");
}

#[tokio::test(start_paused = true)]
async fn changed_roots_apply_to_held_and_new_certificates() {
    let scene = scene(DAY, &[]);
    let lease = scene.certificates.keep(&cart());
    let before = soon(lease.get()).await.expect("a certificate");
    let mut changes = scene.certificates.changes();
    let (own, next) = (scene.script.ca.pem(), ca((scene.clock)() - DAY, (scene.clock)() + DAY).pem());
    assert!(!scene.certificates.trust(&scene.script.other.pem()).expect("PEM"), "the same as before");
    assert!(changes.try_recv().is_err());

    assert!(scene.certificates.trust(&next).expect("PEM"));
    assert_eq!(changes.try_recv().expect("a change"), cart());
    let held = lease.current().expect("a certificate");
    assert_eq!(subjects(&held.roots), subjects(&store(&[own.clone(), next.clone()])), "its own root stays");
    assert_eq!(held.key.cert, before.key.cert, "the certificate is the same");

    let mut watch = lease.watch();
    advance(DAY * 6 / 10).await;
    soon(watch.changed()).await.expect("renewed");
    let renewed = lease.current().expect("a certificate");
    assert_ne!(renewed.key.cert, before.key.cert);
    assert_eq!(subjects(&renewed.roots), subjects(&store(&[own, next])));
    scene.certificates.trust("nothing").expect_err("no roots");
}

#[tokio::test(start_paused = true)]
async fn status_shows_expiry_and_last_error() {
    let scene = scene(DAY, &[Step::Fail]);
    let lease = scene.certificates.keep(&cart());
    soon(lease.get()).await.expect_err("the first attempt fails");
    let status = scene.certificates.status().remove(0);
    assert_eq!(status.identity, cart().to_string());
    assert_eq!(
        (status.not_after, status.error.as_deref()),
        (
            None,
            Some(
                "failed to sign certificate for spiffe://cluster.local/ns/shop/sa/cart: the CA is unavailable"
            )
        )
    );
    let mut watch = lease.watch();
    soon(watch.changed()).await.expect("kept");
    let status = scene.certificates.status().remove(0);
    assert_eq!(status.error, None);
    let expiry = lease.current().expect("a certificate").not_after;
    let seconds = expiry.duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let shown: jiff::Timestamp = status.not_after.expect("a time").parse().expect("RFC 3339");
    assert_eq!(shown.as_second().unsigned_abs(), seconds);
}
