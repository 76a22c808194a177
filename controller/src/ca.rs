//! The certificate authority: leaf certificates for workloads and for the controller's own server. With files
//! it is one root in the state folder; on Kubernetes an intermediate under a root ([`material`]). It signs
//! every request it is given; whether a node may have an identity is decided in [`crate::issue`].
//!
//! Entry points: [`Authority::open`] or [`material::Material::authority`], then [`Authority::sign`] and
//! [`Authority::serving`]; [`Authorities`] holds the ones that sign at present.

mod csr;
pub(crate) mod material;
pub(crate) mod rotation;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_core::model::{Identity, TrustDomain};
use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use x509_parser::extensions::GeneralName;

use crate::state::{self, Folder};
pub(crate) use csr::CsrError;

const FILE: &str = "ca.pem";
const ROOT_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// How much the clocks of nodes may lag behind the controller's.
const LARGEST_BACKDATING: Duration = Duration::from_mins(1);
/// The lifetime of the controller's own certificate; it is renewed at half of that.
const SERVING_LIFETIME: Duration = Duration::from_hours(24);

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    State(#[from] state::Error),
    #[error("failed to use {FILE}: {0}")]
    Damaged(String),
    #[error("failed to use {FILE}: its trust domain is {found}, the configured one {configured}")]
    TrustDomain { found: String, configured: TrustDomain },
    #[error("failed to use {FILE}: its root certificate has expired")]
    Expired,
    #[error("failed to use the CA's certificates and keys: {0}")]
    Material(String),
    #[error("failed to sign a certificate for {subject}: the CA's certificate has expired")]
    SignerExpired { subject: String },
    #[error("failed to create a certificate for {subject}")]
    Make { subject: String, source: rcgen::Error },
    #[error("failed to read random numbers")]
    Random,
    #[error("failed to read the clock: it is before 1970")]
    Clock,
    #[error("failed to accept the certificate request")]
    Csr(#[from] CsrError),
}

/// The authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The certificates from the issuer's to the root's, PEM.
    above: Vec<String>,
    /// When the first of them expires.
    not_after: SystemTime,
    root_not_after: SystemTime,
    longest: Duration,
}

/// The authorities that sign now. On Kubernetes they change when the root is rotated.
#[derive(Clone, Debug)]
pub(crate) struct Signing {
    /// For workloads.
    pub(crate) workloads: Arc<Authority>,
    /// For the controller's own server: one that every daemon trusts.
    pub(crate) serving: Arc<Authority>,
}

impl Signing {
    /// The one for the controller's own server; when it has expired, the one for workloads.
    pub(crate) fn serving_at(&self, now: SystemTime) -> &Arc<Authority> {
        if now < self.serving.not_after { &self.serving } else { &self.workloads }
    }
}

/// Follows the authorities that sign.
pub(crate) type Authorities = watch::Receiver<Signing>;

/// One authority that never changes.
pub(crate) fn only(authority: Authority) -> Authorities {
    let authority = Arc::new(authority);
    watch::channel(Signing { workloads: authority.clone(), serving: authority }).1
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// The controller's certificate for its own server.
pub(crate) struct Serving {
    /// Leaf first, root last.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// When it expires.
    pub(crate) not_after: SystemTime,
    /// When it is to be renewed: half-way from its creation.
    pub(crate) renew_at: SystemTime,
}

impl Authority {
    /// Reads the root, or creates it. The caller holds the folder's lock. An existing root that cannot be
    /// used is an error, never a reason to create another: nodes trust only the one they know.
    pub(crate) fn open(
        folder: &Folder,
        trust_domain: &TrustDomain,
        longest: Duration,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let text = if let Some(text) = folder.read_secret(FILE)? {
            text
        } else {
            let text = make_root(trust_domain, now)?;
            folder.write_secret(FILE, &text)?;
            text
        };
        Self::load(&text, trust_domain, longest, now)
    }

    fn load(
        text: &str,
        trust_domain: &TrustDomain,
        longest: Duration,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let damaged = |what: &str| Error::Damaged(what.to_owned());
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| damaged("no private key"))?;
        let key = KeyPair::try_from(&key).map_err(|_| damaged("failed to parse its private key"))?;
        let root = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| damaged("no certificate"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&root)
            .map_err(|_| damaged("failed to parse its certificate"))?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(damaged("its key is not an ECDSA P-256 key"));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(damaged("its key does not match its certificate"));
        }
        if !parsed.is_ca() {
            return Err(damaged("its certificate is not a CA certificate"));
        }
        check_trust_domain(&parsed, trust_domain)?;
        let not_after = end(&parsed);
        if not_after <= now {
            return Err(Error::Expired);
        }
        let root_pem = certificate_block(text).ok_or_else(|| damaged("no certificate"))?;
        let issuer = Issuer::from_ca_cert_der(&root, key)
            .map_err(|error| Error::Damaged(format!("failed to parse its certificate: {error}")))?;
        Ok(Self { issuer, above: vec![root_pem], not_after, root_not_after: not_after, longest })
    }

    /// The root certificate for nodes, PEM.
    pub(crate) fn root_pem(&self) -> &str {
        self.above.last().map_or("", String::as_str)
    }

    /// When the first of the certificates up to the root expires; nothing is signed after that.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When the root expires.
    pub(crate) fn root_not_after(&self) -> SystemTime {
        self.root_not_after
    }

    /// Signs a workload's certificate, for `identity` only: of the request only the key is used, and one that
    /// names another identity is refused. The chain is PEM, leaf first, root last.
    pub(crate) fn sign(
        &self,
        identity: &Identity,
        csr_pem: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, Error> {
        let name = identity.to_string();
        let key = csr::check(csr_pem, &name)?;
        let san = name.as_str().try_into().map(SanType::URI);
        let san = san.map_err(|source| Error::Make { subject: name.clone(), source })?;
        let leaf = self.leaf(&name, san, DistinguishedName::new(), &key, self.lifetime(ttl), now)?;
        Ok(std::iter::once(leaf.pem()).chain(self.above.iter().cloned()).collect())
    }

    /// The requested lifetime, at least a second and at most what the configuration allows; zero means the
    /// most.
    fn lifetime(&self, ttl: Duration) -> Duration {
        if ttl.is_zero() { self.longest } else { ttl.clamp(Duration::from_secs(1), self.longest) }
    }

    /// Creates a key and a certificate for the controller's own server.
    pub(crate) fn serving(&self, server_name: &str, now: SystemTime) -> Result<Serving, Error> {
        let make = |source| Error::Make { subject: server_name.to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let san = match server_name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(server_name.try_into().map_err(make)?),
        };
        let leaf = self.leaf(server_name, san, common_name(server_name), &key, SERVING_LIFETIME, now)?;
        let mut chain = vec![leaf.der().clone()];
        for pem in &self.above {
            let above = CertificateDer::from_pem_slice(pem.as_bytes());
            chain.push(above.map_err(|error| Error::Damaged(error.to_string()))?);
        }
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|reason| Error::Damaged(format!("failed to parse a new key: {reason}")))?;
        let not_after = (now + SERVING_LIFETIME).min(self.not_after);
        let renew_at = now + not_after.duration_since(now).unwrap_or_default() / 2;
        Ok(Serving { chain, key, not_after, renew_at })
    }

    fn leaf(
        &self,
        subject: &str,
        san: SanType,
        distinguished_name: DistinguishedName,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Certificate, Error> {
        if self.not_after <= now {
            return Err(Error::SignerExpired { subject: subject.to_owned() });
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name;
        params.subject_alt_names = vec![san];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        // At most a tenth, so that short lifetimes stay useful.
        let backdating = LARGEST_BACKDATING.min(lifetime / 10);
        set_validity(&mut params, now - backdating, (now + lifetime).min(self.not_after))?;
        params
            .signed_by(key, &self.issuer)
            .map_err(|source| Error::Make { subject: subject.to_owned(), source })
    }
}

/// Creates a root: its certificate and its key, PEM.
fn make_root(trust_domain: &TrustDomain, now: SystemTime) -> Result<String, Error> {
    // It signs leaf certificates only.
    let (certificate, key) = new_root(trust_domain, 0, now)?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
}

/// Creates a root with `levels` of intermediates under it, and its key.
fn new_root(
    trust_domain: &TrustDomain,
    levels: u8,
    now: SystemTime,
) -> Result<(Certificate, KeyPair), Error> {
    let subject = format!("the root of {trust_domain}");
    let make = |source| Error::Make { subject: subject.clone(), source };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
    let params = authority_params(trust_domain, "Ambit root", levels, now, now + ROOT_LIFETIME)?;
    let root = params.self_signed(&key).map_err(make)?;
    Ok((root, key))
}

/// The parameters that roots and intermediates share.
fn authority_params(
    trust_domain: &TrustDomain,
    name: &str,
    levels: u8,
    now: SystemTime,
    until: SystemTime,
) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    let uri = trust_domain_uri(trust_domain);
    let san = uri.as_str().try_into().map(SanType::URI);
    params.subject_alt_names = vec![san.map_err(|source| Error::Make { subject: uri, source })?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(levels));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    set_validity(&mut params, now - LARGEST_BACKDATING, until)?;
    Ok(params)
}

/// Checks the root's SPIFFE ID: the trust domain without a path, as SPIFFE requires of signing certificates.
fn check_trust_domain(
    root: &x509_parser::certificate::X509Certificate<'_>,
    configured: &TrustDomain,
) -> Result<(), Error> {
    let names = root.subject_alternative_name().ok().flatten();
    let uris =
        names.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    let found: Vec<&str> = uris.collect();
    if found == [trust_domain_uri(configured)] {
        return Ok(());
    }
    Err(Error::TrustDomain { found: found.join(" "), configured: configured.clone() })
}

/// When a certificate expires.
fn end(certificate: &x509_parser::certificate::X509Certificate<'_>) -> SystemTime {
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn trust_domain_uri(trust_domain: &TrustDomain) -> String {
    format!("spiffe://{trust_domain}")
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Random, positive and never zero.
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Sets the validity, in whole seconds.
fn set_validity(params: &mut CertificateParams, from: SystemTime, until: SystemTime) -> Result<(), Error> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |time: SystemTime| {
        time.duration_since(UNIX_EPOCH)
            .map(|since| Duration::from_secs(since.as_secs()))
            .map_err(|_| Error::Clock)
    };
    params.not_before = epoch + since(from)?;
    params.not_after = epoch + since(until)?;
    Ok(())
}

/// The first certificate's PEM block.
fn certificate_block(text: &str) -> Option<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let start = text.find("-----BEGIN CERTIFICATE-----")?;
    let length = text[start..].find(END)? + END.len();
    Some(format!("{}\n", &text[start..start + length]))
}

#[cfg(test)]
mod tests;
