//! What the plugin says when it cannot do what it is asked: the CNI specification's error document and codes.

use serde::Serialize;

/// The specification's codes, and ours from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    IncompatibleVersion = 1,
    InvalidEnvironment = 4,
    Io = 5,
    Decode = 6,
    InvalidConfiguration = 7,
    TryAgainLater = 11,
    /// The node's ztunnel refused the pod.
    Refused = 100,
    /// The API server refused us.
    Forbidden = 101,
}

/// A failure: what was wrong, and the particulars.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {details}")]
pub struct Failure {
    pub code: Code,
    pub message: String,
    pub details: String,
}

impl Failure {
    pub(super) fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }

    /// As the runtime reads it.
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
