//! The controller's CA, as any client on this host sees it: [`Ca`].

use ambit_xds::proto::istio::v1::auth::IstioCertificateRequest;
use ambit_xds::proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use anyhow::{Context, Result};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use super::{DEADLINE, Mesh, Running, SYSTEM};

/// The controller's CA.
#[derive(Debug)]
pub struct Ca {
    endpoint: String,
    root: String,
}

impl Ca {
    /// Reached through a port on this host, as long as the guard lives.
    pub fn forwarded(mesh: &Mesh) -> Result<(Self, Running)> {
        let (controller, forward) = forwarded(mesh)?;
        let path = "jsonpath={.data.root\\.pem}";
        let root = mesh.kubectl(&["-n", SYSTEM, "get", "configmap", "ambit-root", "-o", path])?;
        Ok((Self { endpoint: format!("https://{controller}"), root }, forward))
    }

    /// Asks for a certificate; `named`: the identity, without its trust domain.
    pub fn ask(&self, token: &str, named: Option<&str>) -> Result<Result<Vec<String>, tonic::Status>> {
        let key = rcgen::KeyPair::generate()?;
        let csr = rcgen::CertificateParams::default().serialize_request(&key)?.pem()?;
        let metadata = named.map(|named| {
            let kind = Kind::StringValue(format!("spiffe://cluster.local/ns/{named}"));
            Struct { fields: [("ImpersonatedIdentity".to_owned(), Value { kind: Some(kind) })].into() }
        });
        let body = IstioCertificateRequest { csr, validity_duration: 3600, metadata };
        let mut request = tonic::Request::new(body);
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.root))
            .domain_name(format!("ambit-controller.{SYSTEM}.svc"));
        let endpoint = Endpoint::from_shared(self.endpoint.clone())?.tls_config(tls)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut client = IstioCertificateServiceClient::new(endpoint.connect().await?);
            let answer = tokio::time::timeout(DEADLINE, client.create_certificate(request)).await?;
            Ok(answer.map(|answer| answer.into_inner().cert_chain))
        })
    }
}

/// The controller's port on this host.
fn forwarded(mesh: &Mesh) -> Result<(String, Running)> {
    let arguments = ["-n", SYSTEM, "port-forward", "service/ambit-controller", ":15012"];
    let mut forward = Running::begin(mesh.cluster.kubectl(&arguments))?;
    let line = forward.line()?;
    let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).context("no port")?;
    Ok((format!("127.0.0.1:{port}"), forward))
}

/// Whether the leaf has this identity and no other.
pub fn carries(chain: &[String], identity: &str) -> Result<bool> {
    let leaf = CertificateDer::from_pem_slice(chain.first().context("no certificate")?.as_bytes())?;
    let scheme = b"spiffe://";
    let places: Vec<usize> =
        (1..leaf.len()).filter(|at| leaf.get(*at..*at + scheme.len()) == Some(scheme.as_slice())).collect();
    // In DER a text is preceded by its length.
    let [at] = places[..] else { return Ok(false) };
    Ok(usize::from(leaf[at - 1]) == identity.len() && leaf[at..].starts_with(identity.as_bytes()))
}
