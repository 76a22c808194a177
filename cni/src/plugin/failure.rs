//! Failures of the plugin: the CNI specification's error document and codes.

use serde::Serialize;

/// The specification's codes, and ours from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is not supported.
    IncompatibleVersion = 1,
    /// A variable is missing or malformed.
    InvalidEnvironment = 4,
    /// A file or a socket failed.
    Io = 5,
    /// Input or an answer is not the expected JSON.
    Decode = 6,
    /// The configuration lacks something.
    InvalidConfiguration = 7,
    /// The API server, ztunnel or the agent did not answer, or cannot yet.
    TryAgainLater = 11,
    /// The node's ztunnel refused the pod.
    Refused = 100,
    /// The API server refused the plugin's credential.
    Forbidden = 101,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {details}")]
pub struct Failure {
    /// The code of the error document.
    pub code: Code,
    /// What failed.
    pub message: String,
    /// Why.
    pub details: String,
    /// Another credential may help.
    pub(super) credential: bool,
}

impl Failure {
    pub(super) fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into(), credential: false }
    }

    /// The same, where another credential may help.
    pub(super) fn of_credential(self) -> Self {
        Self { credential: true, ..self }
    }

    /// The error document, as the runtime reads it.
    pub(super) fn to_json(&self, version: &str) -> Vec<u8> {
        #[derive(Serialize)]
        struct Document<'a> {
            #[serde(rename = "cniVersion")]
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let document = Document {
            cni_version: version,
            code: self.code as u32,
            msg: &self.message,
            details: &self.details,
        };
        serde_json::to_vec(&document).unwrap_or_default()
    }
}
