//! The plugin's credential, requested and renewed: a token of its own service account, whose permissions are
//! exactly those that the plugin needs, and that ends with this node.

use std::sync::Arc;
use std::time::Duration;

use ambit_daemon_kit::admin::Condition;
use ambit_kube::access;
use ambit_kube::error::chain;
use ambit_kube::retry::{Backoff, RequestError, within};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client, Config};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::error::AgentError;
use super::telemetry;
use super::watch::Installer;
use crate::credential::Credential;

/// The requested lifetime of a token that is bound to the node. The API server may grant less.
const LIFETIME: Duration = Duration::from_hours(24);
/// That of a token that is bound to nothing.
const UNBOUND_LIFETIME: Duration = Duration::from_hours(1);
/// The feature of the API server that binds tokens to nodes: on by default since Kubernetes 1.31. Its name is
/// in the error of an API server that lacks it.
const NODE_BINDING: &str = "ServiceAccountTokenNodeBinding";
/// Between two attempts.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// The deadline of a request.
const DEADLINE: Duration = Duration::from_secs(10);
/// The shortest time between two renewals, whatever their reason.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// Between two looks at the clock and at the API server's CA certificates.
const LOOK: Duration = Duration::from_secs(10);

/// Requests tokens.
pub(crate) struct Tokens {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    /// The node that tokens are bound to.
    pub(crate) node: String,
    /// The API server's address for the host, if it differs from this process'.
    pub(crate) server: Option<String>,
    pub(crate) kubeconfig: Option<std::path::PathBuf>,
    /// The plugin says that the credential does not serve.
    pub(crate) refused: Arc<Notify>,
    pub(crate) expiry: Arc<Mutex<f64>>,
    pub(crate) condition: Condition,
}

impl Tokens {
    /// Gives the installer a new credential now, and whenever [`Self::due`] says so.
    pub(crate) async fn keep(self, installer: Installer) {
        let mut backoff = RETRY;
        loop {
            match self.fetch().await {
                Ok((credential, expiry)) => {
                    tracing::info!(%expiry, "CNI credential renewed");
                    *self.expiry.lock() = expiry.as_duration().as_secs_f64();
                    self.condition.met();
                    installer.credential(credential.to_text());
                    backoff.reset();
                    let reason = self.due(expiry, &credential.authorities).await;
                    tracing::info!(reason, "CNI credential to be renewed");
                }
                Err(error) => {
                    telemetry::API_ERRORS.count();
                    let error = chain(&error);
                    tracing::warn!(error, "failed to renew the CNI credential");
                    if *self.expiry.lock() < Timestamp::now().as_duration().as_secs_f64() {
                        self.condition.unmet(error);
                    }
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    }

    /// Waits until a new credential is needed; why.
    async fn due(&self, expiry: Timestamp, authorities: &str) -> &'static str {
        let life = Duration::try_from(expiry.duration_since(Timestamp::now())).unwrap_or_default();
        let half = expiry - life / 2;
        tokio::time::sleep(MIN_INTERVAL).await;
        loop {
            // By the wall clock, which the API server's judgement follows, also while the machine sleeps.
            if Timestamp::now() >= half {
                return "half of its life has passed";
            }
            if let Ok(config) = access::config(self.kubeconfig.as_deref()).await
                && self::authorities(&config) != authorities
            {
                return "the API server's CA certificates have changed";
            }
            tokio::select! {
                () = self.refused.notified() => return "the API server refused it",
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn fetch(&self) -> Result<(Credential, Timestamp), AgentError> {
        // Read each time: the cluster's CA certificates may change.
        let config = access::config(self.kubeconfig.as_deref()).await?;
        let server = self.server.clone().unwrap_or_else(|| config.cluster_url.to_string());
        let authorities = authorities(&config);
        if authorities.is_empty() {
            return Err(AgentError::Answer("no CA certificate"));
        }
        let client = Client::try_from(config).map_err(|source| AgentError::Api {
            operation: "create the API client",
            source: source.into(),
        })?;
        let failed = |source| AgentError::Api { operation: "request a token for the CNI plugin", source };
        let bound = bound_to(&self.node);
        let answer = match self.request(&client, LIFETIME, Some(bound)).await {
            Err(RequestError::Api(kube::Error::Api(status))) if status.message.contains(NODE_BINDING) => {
                self.request(&client, UNBOUND_LIFETIME, None).await.map_err(failed)?
            }
            answer => answer.map_err(failed)?,
        };
        let status = answer.status.ok_or(AgentError::Answer("no token"))?;
        let credential =
            Credential { server: server.trim_end_matches('/').to_owned(), authorities, token: status.token };
        Ok((credential, status.expiration_timestamp.0))
    }

    async fn request(
        &self,
        client: &Client,
        lifetime: Duration,
        bound_object_ref: Option<BoundObjectReference>,
    ) -> Result<TokenRequest, RequestError> {
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &self.namespace);
        let spec = TokenRequestSpec {
            expiration_seconds: Some(lifetime.as_secs().cast_signed()),
            bound_object_ref,
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let parameters = PostParams::default();
        within(DEADLINE, accounts.create_token_request(&self.service_account, &parameters, &request)).await
    }
}

/// The token ends when the Node object is deleted: what was copied from a node is worth nothing afterwards.
fn bound_to(node: &str) -> BoundObjectReference {
    BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid: None,
    }
}

/// The API server's CA certificates, PEM.
pub(crate) fn authorities(config: &Config) -> String {
    config.root_cert.iter().flatten().map(|certificate| pem(certificate)).collect()
}

fn pem(certificate: &[u8]) -> String {
    let encoded = STANDARD.encode(certificate);
    let lines: Vec<_> = encoded.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;

    #[test]
    fn authorities_are_written_as_pem() {
        let certificates = [vec![7; 100], vec![9; 48]];
        let text: String = certificates.iter().map(|certificate| super::pem(certificate)).collect();
        assert!(text.lines().all(|line| line.len() <= 64), "{text}");
        let read: Vec<_> =
            CertificateDer::pem_slice_iter(text.as_bytes()).map(|it| it.unwrap().to_vec()).collect();
        assert_eq!(read, certificates);
    }
}
