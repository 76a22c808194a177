//! The plugin's credential, fetched and renewed: a token of a service account of its own, which may do
//! nothing but what the plugin does.

use std::sync::Arc;
use std::time::Duration;

use ambit_daemon_kit::admin::Condition;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;

use super::watch::Installer;
use super::{AgentError, kube_config, telemetry};
use crate::chain;
use crate::credential::Credential;

/// How long a token is asked to be valid. The API server may give less.
const VALIDITY: Duration = Duration::from_hours(24);
/// Between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// A token is not renewed more often than this, however short it is.
const LEAST_REST: Duration = Duration::from_secs(10);

/// What it takes to fetch one.
pub(crate) struct Tokens {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    /// Where the host reaches the API server, if not where this process does.
    pub(crate) server: Option<String>,
    pub(crate) kubeconfig: Option<std::path::PathBuf>,
    pub(crate) expiry: Arc<Mutex<f64>>,
    pub(crate) condition: Condition,
}

impl Tokens {
    /// Hands a fresh credential to the installer now and at half of each one's life, for ever.
    pub(crate) async fn keep(self, installer: Installer) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.fetch().await {
                Ok((credential, expiry)) => {
                    let life =
                        Duration::try_from(expiry.duration_since(Timestamp::now())).unwrap_or_default();
                    tracing::info!(%expiry, "the plugin's credential is new");
                    *self.expiry.lock() = expiry.as_duration().as_secs_f64();
                    self.condition.met();
                    installer.credential(credential.to_text());
                    pause = FIRST_PAUSE;
                    tokio::time::sleep((life / 2).max(LEAST_REST)).await;
                }
                Err(error) => {
                    telemetry::API_ERRORS.count();
                    let error = chain(&error);
                    tracing::warn!(error, "the plugin's credential is not renewed");
                    if *self.expiry.lock() < Timestamp::now().as_duration().as_secs_f64() {
                        self.condition.unmet(error);
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    async fn fetch(&self) -> Result<(Credential, Timestamp), AgentError> {
        // Read each time: the cluster's authorities change.
        let config = kube_config(self.kubeconfig.as_deref()).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let spec = TokenRequestSpec {
            expiration_seconds: Some(VALIDITY.as_secs().cast_signed()),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let answer = accounts
            .create_token_request(&self.service_account, &PostParams::default(), &request)
            .await
            .map_err(|source| AgentError::Api { operation: "asking for the plugin's token", source })?;
        let missing = || AgentError::Answer("the API server's answer holds no token");
        let status = answer.status.ok_or_else(missing)?;
        let server = self.server.clone().unwrap_or_else(|| config.cluster_url.to_string());
        let authorities = config.root_cert.unwrap_or_default();
        let authorities: String = authorities.iter().map(|certificate| pem(certificate)).collect();
        if authorities.is_empty() {
            return Err(AgentError::Answer("the API server's authorities are not known"));
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
