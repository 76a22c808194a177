//! The certificate authority of the lab: [`Ca`].

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use ambit_certificates::Signer;
use ambit_core::model::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};

/// What all certificates end in.
pub(crate) static CA: LazyLock<CertifiedIssuer<'static, KeyPair>> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (SystemTime::now() - Duration::from_mins(1)).into();
    params.not_after = (SystemTime::now() + Duration::from_hours(24)).into();
    params.distinguished_name.push(rcgen::DnType::CommonName, "test root");
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root")
});

/// Signs what it is asked for, as the controller's CA does.
pub(crate) struct Ca;

impl Signer for Ca {
    type Error = String;

    async fn sign(&self, identity: &Identity, csr: String, ttl: Duration) -> Result<Vec<String>, String> {
        let mut csr = CertificateSigningRequestParams::from_pem(&csr).map_err(|error| error.to_string())?;
        csr.params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().expect("ASCII"))];
        csr.params.not_before = (SystemTime::now() - Duration::from_secs(1)).into();
        csr.params.not_after = (SystemTime::now() + ttl).into();
        csr.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = csr.signed_by(&*CA).map_err(|error| error.to_string())?;
        Ok(vec![leaf.pem(), CA.pem()])
    }
}
