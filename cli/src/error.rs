//! What can go wrong, in the words that a person at a terminal gets.

use std::io;

/// Why a verb did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("finding the cluster: {0}")]
    Access(String),
    #[error("{operation}")]
    Api { operation: String, source: kube::Error },
    #[error("{what} cannot be read")]
    Document { what: String, source: serde_yaml_ng::Error },
    /// Nothing was changed.
    #[error("{0}")]
    Refused(String),
    #[error("not {goal} after {seconds} s:\n{missing}")]
    Late { goal: &'static str, seconds: u64, missing: String },
    #[error("asking {whom}: {what}")]
    Admin { whom: String, what: String },
    #[error("printing")]
    Output(#[from] io::Error),
}

/// Names the operation that the API server did not do.
pub(crate) fn api(operation: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let operation = operation.into();
    move |source| Error::Api { operation, source }
}

/// The API server has no such object, or no such kind.
pub(crate) fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
