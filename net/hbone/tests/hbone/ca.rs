//! A certificate authority, and certificates as good or bad as a test wants them.

use std::time::{Duration, SystemTime};

use ambit_core::model::Identity;
use ambit_hbone::tls::WorkloadCertificate;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

const HOUR: Duration = Duration::from_hours(1);

pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

/// What a certificate says.
#[derive(Clone)]
pub(crate) struct Claims {
    pub(crate) names: Vec<SanType>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Claims {
    pub(crate) fn of(identity: &str) -> Self {
        Self::uris(&[identity])
    }

    pub(crate) fn uris(uris: &[&str]) -> Self {
        Self {
            names: uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect(),
            not_before: SystemTime::now() - HOUR,
            not_after: SystemTime::now() + HOUR,
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }

    pub(crate) fn expired(mut self) -> Self {
        self.not_after = SystemTime::now() - Duration::from_mins(1);
        self
    }

    pub(crate) fn not_yet_valid(mut self) -> Self {
        self.not_before = SystemTime::now() + Duration::from_mins(1);
        self
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::named("ambit")
    }

    pub(crate) fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a root"))
    }

    /// A certificate that says `claims`, held by a workload that considers itself `identity`.
    pub(crate) fn issue(&self, identity: &str, claims: Claims) -> WorkloadCertificate {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = claims.names;
        params.not_before = claims.not_before.into();
        params.not_after = claims.not_after.into();
        params.extended_key_usages = claims.usages;
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.0).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = [leaf.pem(), self.0.pem()];
        let identity: Identity = identity.parse().expect("an identity");
        WorkloadCertificate::new(identity, &chain, key, claims.not_before, claims.not_after)
            .expect("a chain and its key")
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn good(&self, identity: &str) -> WorkloadCertificate {
        self.issue(identity, Claims::of(identity))
    }
}
