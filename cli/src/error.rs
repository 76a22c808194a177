//! Errors of the command line.

use std::io;

use ambit_kube::access::AccessError;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Access(#[from] AccessError),
    /// `operation` is an infinitive with its object: `list nodes`.
    #[error("failed to {operation}")]
    Api { operation: String, source: kube::Error },
    #[error("failed to parse {document}")]
    Document { document: String, source: serde_yaml_ng::Error },
    /// Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// `goal` is an infinitive with its object.
    #[error("failed to {goal} within {seconds} s:\n{missing}")]
    Late { goal: &'static str, seconds: u64, missing: String },
    #[error("failed to query {daemon}: {reason}")]
    Admin { daemon: String, reason: String },
    #[error("failed to print")]
    Output(#[from] io::Error),
}

/// Names the operation that the API server did not do: an infinitive with its object.
pub(crate) fn api(operation: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let operation = operation.into();
    move |source| Error::Api { operation, source }
}
