//! A CA on Kubernetes: its roots, the certificates from the signing one up to them, and its key. Created
//! here, or given by the user under Istio's names.
//!
//! Entry points: [`Material::make`] and [`Material::from_user`], then [`Material::authority`], which checks
//! them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_core::model::{Identity, TrustDomain};
use aws_lc_rs::digest;
use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use serde::{Deserialize, Serialize};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage};

use super::{Authority, Error, LARGEST_BACKDATING, authority_params, end, new_root};

/// The lifetime of an intermediate. A new one is created when a third of it is left.
pub(super) const INTERMEDIATE_LIFETIME: Duration = Duration::from_hours(365 * 24);

/// One CA. All texts are PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Material {
    /// Every root that its certificates chain up to.
    roots: String,
    /// The root's key, if the root was created here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root_key: Option<String>,
    /// The signing certificate and those above it, without the root's. Empty if the root signs.
    chain: String,
    /// The signing key.
    key: String,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

/// A user's own CA, under the names that Istio gives its parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UserCa<'a> {
    pub(crate) ca_cert: &'a str,
    pub(crate) ca_key: &'a str,
    pub(crate) cert_chain: &'a str,
    pub(crate) root_cert: &'a str,
}

impl Material {
    /// A new root and an intermediate under it.
    pub(crate) fn make(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, Error> {
        let (root, root_key) = new_root(trust_domain, 1, now)?;
        let mut made = Self {
            roots: root.pem(),
            root_key: Some(root_key.serialize_pem()),
            chain: String::new(),
            key: String::new(),
        };
        (made.chain, made.key) = made.intermediate(trust_domain, now)?;
        Ok(made)
    }

    /// A CA given by the user.
    pub(crate) fn from_user(given: UserCa<'_>) -> Result<Self, Error> {
        let roots = certificates("root-cert.pem", given.root_cert)?;
        let signing = certificates("ca-cert.pem", given.ca_cert)?;
        let signing = signing.into_iter().next().ok_or_else(|| missing("ca-cert.pem"))?;
        let mut chain = vec![signing.clone()];
        chain.extend(certificates("cert-chain.pem", given.cert_chain)?.into_iter().filter(|c| *c != signing));
        chain.retain(|certificate| !roots.contains(certificate));
        if roots.is_empty() {
            return Err(missing("root-cert.pem"));
        }
        Ok(Self {
            roots: pem(&roots),
            root_key: None,
            chain: pem(&chain),
            key: given.ca_key.trim().to_owned() + "\n",
        })
    }

    /// The same with a new intermediate, if the present one is due for renewal.
    pub(crate) fn renewed(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<Option<Self>, Error> {
        if self.renewal()?.is_none_or(|due| now < due) || self.root_end()? <= now {
            return Ok(None);
        }
        let (chain, key) = self.intermediate(trust_domain, now)?;
        Ok(Some(Self { chain, key, ..self.clone() }))
    }

    /// When the next intermediate is due. Never without the root's key, nor when the root ends with the
    /// present one: another would end at the same time.
    pub(crate) fn renewal(&self) -> Result<Option<SystemTime>, Error> {
        let chain_end = first_end(&certificates("cert-chain.pem", &self.chain)?)?;
        let chain_end =
            chain_end.filter(|end| self.root_key.is_some() && self.root_end().is_ok_and(|root| *end < root));
        Ok(chain_end.map(|end| end - INTERMEDIATE_LIFETIME / 3))
    }

    /// When another root is due: while the present one still lasts for an intermediate's lifetime. Only for a
    /// root that was created here.
    pub(crate) fn root_renewal(&self) -> Result<Option<SystemTime>, Error> {
        Ok(if self.root_key.is_some() { Some(self.root_end()? - INTERMEDIATE_LIFETIME) } else { None })
    }

    /// When it can no longer sign: when the first certificate below the roots or the last of the roots
    /// expires.
    pub(crate) fn not_after(&self) -> Result<SystemTime, Error> {
        let chain_end = first_end(&certificates("cert-chain.pem", &self.chain)?)?;
        let root_end = self.root_end()?;
        Ok(chain_end.map_or(root_end, |chain_end| chain_end.min(root_end)))
    }

    /// When the last of its roots expires.
    fn root_end(&self) -> Result<SystemTime, Error> {
        let ends = ends(&certificates("root-cert.pem", &self.roots)?)?;
        ends.into_iter().max().ok_or_else(|| missing("root-cert.pem"))
    }

    /// How many of its roots have expired. They vouch for nothing, and do no harm.
    pub(crate) fn expired_roots(&self, now: SystemTime) -> usize {
        let ends = certificates("root-cert.pem", &self.roots).and_then(|roots| ends(&roots));
        ends.unwrap_or_default().into_iter().filter(|end| *end <= now).count()
    }

    /// Its roots, one PEM block each.
    pub(crate) fn roots(&self) -> Vec<String> {
        let found = CertificateDer::pem_slice_iter(self.roots.as_bytes()).filter_map(Result::ok);
        found.map(|root| pem(&[root])).collect()
    }

    /// Identifies it without revealing anything about the key.
    pub(crate) fn fingerprint(&self) -> String {
        let digest = digest::digest(&digest::SHA256, format!("{}{}", self.roots, self.chain).as_bytes());
        crate::hex::encode(digest.as_ref())
    }

    /// The CA, if its parts fit together and peers that trust its roots accept what it signs.
    pub(crate) fn authority(
        &self,
        trust_domain: &TrustDomain,
        longest: Duration,
        now: SystemTime,
    ) -> Result<Authority, Error> {
        let wrong = |what: &str| Error::Material(what.to_owned());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|_| wrong("no private key"))?;
        let key = KeyPair::try_from(&key).map_err(|_| wrong("failed to parse the private key"))?;
        let mut roots = certificates("root-cert.pem", &self.roots)?;
        // Verifying does not compare a root's end with the time: an expired one must not be found.
        roots.retain(|root| {
            ends(std::slice::from_ref(root)).is_ok_and(|ends| ends.iter().all(|end| now < *end))
        });
        if roots.is_empty() {
            return Err(wrong("every root has expired or cannot be parsed"));
        }
        let chain = certificates("cert-chain.pem", &self.chain)?;
        let issuer = chain.first().or(roots.first()).ok_or_else(|| wrong("no certificate"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(issuer)
            .map_err(|_| wrong("failed to parse the signing certificate"))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(wrong("the private key does not match the signing certificate"));
        }
        if !parsed.is_ca() {
            return Err(wrong("the signing certificate is not a CA certificate"));
        }
        let issuer = Issuer::from_ca_cert_der(issuer, key)
            .map_err(|error| Error::Material(format!("failed to use the signing certificate: {error}")))?;
        let above = chain.iter().map(|certificate| pem(std::slice::from_ref(certificate))).collect();
        let not_after = self.not_after()?;
        let mut authority = Authority { issuer, above, not_after, root_not_after: not_after, longest };
        let root = authority.anchor(trust_domain, &chain, &roots, now)?;
        authority.above.push(pem(std::slice::from_ref(root)));
        authority.root_not_after = first_end(std::slice::from_ref(root))?.unwrap_or(now);
        let chain_end = first_end(&chain)?.unwrap_or(authority.root_not_after);
        authority.not_after = chain_end.min(authority.root_not_after);
        Ok(authority)
    }

    /// A new intermediate under the root, and its key.
    fn intermediate(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<(String, String), Error> {
        let subject = format!("the intermediate of {trust_domain}");
        let make = |source| Error::Make { subject: subject.clone(), source };
        let root_key = self.root_key.as_deref().ok_or_else(|| missing("the root's key"))?;
        let root_key = KeyPair::from_pem(root_key).map_err(make)?;
        let root = Issuer::from_ca_cert_pem(&self.roots, root_key).map_err(make)?;
        let root_end = first_end(&certificates("root-cert.pem", &self.roots)?)?.unwrap_or(now);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let until = (now + INTERMEDIATE_LIFETIME).min(root_end);
        let mut params = authority_params(trust_domain, "Ambit intermediate", 0, now, until)?;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &root).map_err(make)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

impl Authority {
    /// The root by which peers accept what this signs, found by verifying a trial certificate.
    fn anchor<'r>(
        &self,
        trust_domain: &TrustDomain,
        chain: &[CertificateDer<'static>],
        roots: &'r [CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<&'r CertificateDer<'static>, Error> {
        let subject = format!("spiffe://{trust_domain}/ns/ambit/sa/trial");
        let identity: Identity = subject.parse().map_err(|_| missing("the trust domain"))?;
        let make = |source| Error::Make { subject: subject.clone(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let request = rcgen::CertificateParams::default().serialize_request(&key).and_then(|r| r.pem());
        let leaf = self.sign(&identity, &request.map_err(make)?, LARGEST_BACKDATING, now)?;
        let leaf = leaf.first().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()));
        let Some(Ok(leaf)) = leaf else { return Err(missing("a certificate")) };
        let leaf = EndEntityCert::try_from(&leaf).map_err(not_accepted)?;
        let since = now.duration_since(UNIX_EPOCH).map_err(|_| Error::Clock)?;
        let time = UnixTime::since_unix_epoch(since);
        let mut last = None;
        for root in roots {
            let anchor = webpki::anchor_from_trusted_cert(root).map_err(not_accepted)?;
            let (usage, anchors) = (KeyUsage::client_auth(), [anchor]);
            match leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, chain, time, usage, None, None) {
                Ok(_) => return Ok(root),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| missing("root-cert.pem"), not_accepted))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "errors are mapped by value")]
fn not_accepted(error: webpki::Error) -> Error {
    Error::Material(format!("failed to verify as a peer what it signs: {error:?}"))
}

fn missing(what: &str) -> Error {
    Error::Material(format!("failed to parse {what}: it is missing or not PEM"))
}

fn certificates(what: &str, text: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    found.map_err(|_| missing(what))
}

/// When the first of them expires.
fn first_end(certificates: &[CertificateDer<'_>]) -> Result<Option<SystemTime>, Error> {
    Ok(ends(certificates)?.into_iter().min())
}

/// When each of them expires.
fn ends(certificates: &[CertificateDer<'_>]) -> Result<Vec<SystemTime>, Error> {
    let parsed = certificates.iter().map(|der| x509_parser::parse_x509_certificate(der));
    parsed
        .map(|parsed| parsed.map(|(_, parsed)| end(&parsed)).map_err(|_| missing("a certificate")))
        .collect()
}

fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let blocks = certificates.iter().map(|der| {
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    });
    blocks.collect()
}

#[cfg(test)]
mod tests;
