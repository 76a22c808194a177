//! The plugin's credential: a kubeconfig file, which other tools can use too. Written as JSON, which is valid
//! YAML: the plugin needs no YAML parser.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::entry::PLUGIN;

/// The API server, how to authenticate it, and the plugin's token.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// `https://host:port`.
    pub server: String,
    /// Root certificates of the API server, PEM.
    pub authorities: String,
    /// A service-account token.
    pub token: String,
}

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// It is not the JSON that Ambit's agent writes.
    #[error("not a kubeconfig of Ambit's agent")]
    Form(#[from] serde_json::Error),
    /// The CA certificates are not PEM in base64.
    #[error("certificate-authority-data: {0}")]
    Authorities(String),
    /// A list is empty.
    #[error("missing {0}")]
    Missing(&'static str),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    clusters: Vec<ClusterEntry>,
    users: Vec<UserEntry>,
    contexts: Vec<ContextEntry>,
    current_context: String,
}

#[derive(Serialize, Deserialize)]
struct ClusterEntry {
    name: String,
    cluster: Cluster,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

#[derive(Serialize, Deserialize)]
struct UserEntry {
    name: String,
    user: User,
}

#[derive(Serialize, Deserialize)]
struct User {
    token: String,
}

#[derive(Serialize, Deserialize)]
struct ContextEntry {
    name: String,
    context: Context,
}

#[derive(Serialize, Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

impl Credential {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        let file: File = serde_json::from_str(text)?;
        let cluster = file.clusters.into_iter().next().ok_or(CredentialError::Missing("a cluster"))?.cluster;
        let user = file.users.into_iter().next().ok_or(CredentialError::Missing("a user"))?.user;
        let authorities = STANDARD
            .decode(cluster.certificate_authority_data)
            .map_err(|error| CredentialError::Authorities(error.to_string()))?;
        let authorities =
            String::from_utf8(authorities).map_err(|_| CredentialError::Authorities("not PEM".to_owned()))?;
        Ok(Self { server: cluster.server, authorities, token: user.token })
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let name = || PLUGIN.to_owned();
        let cluster = Cluster {
            server: self.server.clone(),
            certificate_authority_data: STANDARD.encode(&self.authorities),
        };
        let file = File {
            api_version: "v1".to_owned(),
            kind: "Config".to_owned(),
            clusters: vec![ClusterEntry { name: name(), cluster }],
            users: vec![UserEntry { name: name(), user: User { token: self.token.clone() } }],
            contexts: vec![ContextEntry { name: name(), context: Context { cluster: name(), user: name() } }],
            current_context: name(),
        };
        let mut text = serde_json::to_string_pretty(&file).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// Without the token.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("server", &self.server).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_credentials_are_read_back() {
        let credential = Credential {
            server: "https://10.96.0.1:443".to_owned(),
            authorities: "-----BEGIN CERTIFICATE-----\n".to_owned(),
            token: "secret".to_owned(),
        };
        let text = credential.to_text();
        assert_eq!(Credential::parse(&text).unwrap(), credential);
        assert!(!format!("{credential:?}").contains("secret"));
        // Fields that other tools read.
        let yaml: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
        assert_eq!(yaml["current-context"], "ambit-cni");
        assert_eq!(yaml["contexts"][0]["context"]["user"], yaml["users"][0]["name"]);
        assert_eq!(yaml["clusters"][0]["cluster"]["server"], "https://10.96.0.1:443");
    }

    #[test]
    fn errors_name_the_field() {
        let good = Credential { server: "s".into(), authorities: "a".into(), token: "t".into() }.to_text();
        let authorities = "certificate-authority-data";
        let rows = [
            ("not JSON", "apiVersion: v1".to_owned(), "not a kubeconfig"),
            ("no authorities", good.replace(authorities, "x"), authorities),
            ("bad base64", good.replace("YQ==", "???"), authorities),
            ("no token", good.replace("token", "password"), "token"),
        ];
        for (name, text, expected) in rows {
            let error = ambit_core::chain(&Credential::parse(&text).unwrap_err());
            assert!(error.contains(expected), "{name}: {error}");
        }
    }
}
