//! The certificates of a cluster: one authority, and a certificate for each component.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

/// Longer than any cluster of this kind lives.
const VALID: Duration = Duration::from_hours(24 * 365);
/// Certificates are valid from this long ago: one that is made in this second must be valid too.
const BEFORE: Duration = Duration::from_mins(5);

/// The folder of certificates and the authority that writes them.
pub(crate) struct Pki {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// The subject of a certificate.
pub(crate) struct Subject<'a> {
    /// The user, as the apiserver sees it.
    pub(crate) user: &'a str,
    /// The group.
    pub(crate) group: Option<&'a str>,
    pub(crate) names: &'a [&'a str],
    pub(crate) addresses: &'a [IpAddr],
}

impl Pki {
    /// A new authority in this folder, and the key that service-account tokens are signed with.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
        let mut params = params("ambit-cluster", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let pki = Self { folder: folder.to_path_buf(), issuer };
        pki.write("ca.crt", &pki.issuer.pem())?;
        pki.write("ca.key", &pki.issuer.key().serialize_pem())?;
        let tokens = KeyPair::generate()?;
        pki.write("tokens.key", &tokens.serialize_pem())?;
        pki.write("tokens.pub", &tokens.public_key_pem())?;
        Ok(pki)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A certificate and its key, as `NAME.crt` and `NAME.key`.
    pub(crate) fn issue(&self, name: &str, subject: &Subject<'_>) -> Result<()> {
        let mut params = params(subject.user, subject.group);
        for dns in subject.names {
            params.subject_alt_names.push(SanType::DnsName((*dns).try_into()?));
        }
        params.subject_alt_names.extend(subject.addresses.iter().copied().map(SanType::IpAddress));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        self.write(&format!("{name}.crt"), &certificate.pem())?;
        self.write(&format!("{name}.key"), &key.serialize_pem())
    }

    /// A certificate for a client of the apiserver, and a kubeconfig that uses it.
    pub(crate) fn client(
        &self,
        name: &str,
        user: &str,
        group: Option<&str>,
        server: &str,
    ) -> Result<PathBuf> {
        self.issue(name, &Subject { user, group, names: &[], addresses: &[] })?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "ambit",
            "clusters": [{
                "name": "ambit",
                "cluster": {"server": server, "certificate-authority": self.path("ca.crt")},
            }],
            "users": [{
                "name": name,
                "user": {
                    "client-certificate": self.path(&format!("{name}.crt")),
                    "client-key": self.path(&format!("{name}.key")),
                },
            }],
            "contexts": [{"name": "ambit", "context": {"cluster": "ambit", "user": name}}],
        });
        let file = format!("{name}.kubeconfig");
        self.write(&file, &format!("{config:#}\n"))?;
        Ok(self.path(&file))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        std::fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(())
    }
}

fn params(user: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    let now = SystemTime::now();
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + VALID).into();
    params
}
