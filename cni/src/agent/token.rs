//! The plugin's credential, requested and renewed: a token of its own service account, whose permissions are
//! exactly those that the plugin needs.

use std::sync::Arc;
use std::time::Duration;

use ambit_daemon_kit::admin::Condition;
use ambit_kube::access;
use ambit_kube::error::chain;
use ambit_kube::retry::Backoff;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;

use super::error::AgentError;
use super::telemetry;
use super::watch::Installer;
use crate::credential::Credential;

/// The requested lifetime of a token. The API server may grant less.
const LIFETIME: Duration = Duration::from_hours(24);
/// Between two attempts.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// The shortest time between two renewals, however short the granted lifetime is.
const MIN_INTERVAL: Duration = Duration::from_secs(10);

/// Requests tokens.
pub(crate) struct Tokens {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    /// The API server's address for the host, if it differs from this process'.
    pub(crate) server: Option<String>,
    pub(crate) kubeconfig: Option<std::path::PathBuf>,
    pub(crate) expiry: Arc<Mutex<f64>>,
    pub(crate) condition: Condition,
}

impl Tokens {
    /// Gives the installer a new credential now, and whenever half of the lifetime has passed.
    pub(crate) async fn keep(self, installer: Installer) {
        let mut backoff = RETRY;
        loop {
            match self.fetch().await {
                Ok((credential, expiry)) => {
                    let lifetime =
                        Duration::try_from(expiry.duration_since(Timestamp::now())).unwrap_or_default();
                    tracing::info!(%expiry, "CNI credential renewed");
                    *self.expiry.lock() = expiry.as_duration().as_secs_f64();
                    self.condition.met();
                    installer.credential(credential.to_text());
                    backoff.reset();
                    tokio::time::sleep((lifetime / 2).max(MIN_INTERVAL)).await;
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

    async fn fetch(&self) -> Result<(Credential, Timestamp), AgentError> {
        // Read each time: the cluster's CA certificates may change.
        let config = access::config(self.kubeconfig.as_deref()).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let spec = TokenRequestSpec {
            expiration_seconds: Some(LIFETIME.as_secs().cast_signed()),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let answer = accounts
            .create_token_request(&self.service_account, &PostParams::default(), &request)
            .await
            .map_err(|source| AgentError::Api { operation: "request a token for the CNI plugin", source })?;
        let missing = || AgentError::Answer("no token");
        let status = answer.status.ok_or_else(missing)?;
        let server = self.server.clone().unwrap_or_else(|| config.cluster_url.to_string());
        let authorities = config.root_cert.unwrap_or_default();
        let authorities: String = authorities.iter().map(|certificate| pem(certificate)).collect();
        if authorities.is_empty() {
            return Err(AgentError::Answer("no CA certificate"));
        }
        let credential =
            Credential { server: server.trim_end_matches('/').to_owned(), authorities, token: status.token };
        Ok((credential, status.expiration_timestamp.0))
    }
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
