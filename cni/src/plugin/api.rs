//! The API server, as the plugin needs it: two reads. Its credential can do nothing else.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::failure::{Code, Failure};
use crate::credential::Credential;

/// The deadline of a request, from the connection to the last byte.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest answer: etcd's limit is 1.5 MB per object.
const MAX_ANSWER: u64 = 4 << 20;

/// What is read of a pod or a namespace.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Object {
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
    pub(super) status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    pub(super) uid: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) host_network: bool,
    pub(super) service_account_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) phase: String,
}

/// A client of the API server.
pub(super) struct Api {
    agent: Agent,
    server: String,
    authorization: String,
}

impl Api {
    /// With the credential in the file.
    pub(super) fn open(kubeconfig: &Path) -> Result<Self, Failure> {
        let unusable = |details: String| {
            let message = format!("failed to read the CNI credential {}", kubeconfig.display());
            Failure::new(Code::TryAgainLater, message, details)
        };
        let text = std::fs::read_to_string(kubeconfig).map_err(|error| unusable(error.to_string()))?;
        let credential = Credential::parse(&text).map_err(|error| unusable(ambit_core::chain(&error)))?;
        let roots: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(credential.authorities.as_bytes()).collect();
        let roots = roots.map_err(|error| unusable(format!("certificate-authority-data: {error}")))?;
        let roots = roots.iter().map(|root| Certificate::from_der(root).to_owned());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots.collect())))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .build();
        let configuration = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            // The environment's proxy is not meant for the cluster's own API server.
            .proxy(None)
            .max_redirects(0)
            .timeout_global(Some(DEADLINE))
            .http_status_as_error(false)
            .user_agent(concat!("ambit-cni/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            agent: configuration.into(),
            server: credential.server.trim_end_matches('/').to_owned(),
            authorization: format!("Bearer {}", credential.token),
        })
    }

    pub(super) fn pod(&self, namespace: &str, name: &str) -> Result<Object, Failure> {
        self.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))
    }

    pub(super) fn namespace(&self, name: &str) -> Result<Object, Failure> {
        self.get(&format!("/api/v1/namespaces/{name}"))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let answer = self
            .agent
            .get(format!("{}{path}", self.server))
            .header("authorization", &self.authorization)
            .call()
            .map_err(|error| unreachable(path, &error))?;
        let body = body_of(path, answer)?;
        serde_json::from_slice(&body)
            .map_err(|error| Failure::new(Code::Decode, format!("GET {path}"), error.to_string()))
    }
}

/// The answer's body, if its status is a success.
fn body_of(path: &str, mut answer: Response<ureq::Body>) -> Result<Vec<u8>, Failure> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Status {
        message: String,
    }
    let status = answer.status();
    let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
    let body = body.map_err(|error| unreachable(path, &error))?;
    if status.is_success() {
        return Ok(body);
    }
    let message = serde_json::from_slice::<Status>(&body).unwrap_or_default().message;
    // The kubelet tries again in any case; the code is for people.
    let code = match status.as_u16() {
        401 | 403 => Code::Forbidden,
        _ => Code::TryAgainLater,
    };
    let failure = Failure::new(code, format!("GET {path}: {status}"), message);
    Err(if status.as_u16() == 401 { failure.of_credential() } else { failure })
}

fn unreachable(path: &str, error: &ureq::Error) -> Failure {
    let failure =
        Failure::new(Code::TryAgainLater, format!("GET {path}: no answer"), ambit_core::chain(error));
    // The credential's authorities may not be the API server's any more.
    if matches!(error, ureq::Error::Rustls(_)) || is_tls(error) { failure.of_credential() } else { failure }
}

/// Whether a TLS error is behind an error of the connection.
fn is_tls(error: &ureq::Error) -> bool {
    let ureq::Error::Io(io) = error else { return false };
    let Some(cause) = io.get_ref() else { return false };
    cause.is::<rustls::Error>()
}
