//! The crate's errors: which operation failed, for which identity, and why.

use std::error::Error as StdError;
use std::time::Duration;

use ambit_core::model::Identity;

/// Why there is no certificate, or none that can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trusted roots are not PEM, or there are none.
    #[error(transparent)]
    ReadRoots(#[from] ambit_daemon_kit::Error),
    /// A root is not a certificate that can be trusted.
    #[error("failed to trust roots")]
    TrustRoots {
        /// What is wrong with the root.
        source: rustls::Error,
    },
    /// No key or request could be made.
    #[error("failed to create key for {identity}")]
    CreateKey {
        /// The identity that the key was for.
        identity: Identity,
        /// What went wrong.
        source: rcgen::Error,
    },
    /// The signer refused or failed.
    #[error("failed to sign certificate for {identity}")]
    Sign {
        /// The identity asked for.
        identity: Identity,
        /// What the signer said.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The signer did not answer.
    #[error("failed to sign certificate for {identity}: no answer within {} s", timeout.as_secs_f32())]
    SignTimeout {
        /// The identity asked for.
        identity: Identity,
        /// How long the signer had.
        timeout: Duration,
    },
    /// The signer's answer is not a certificate for this key and identity that is valid now.
    #[error("failed to verify certificate for {identity}: {message}")]
    Refused {
        /// The identity asked for.
        identity: Identity,
        /// What is wrong with the answer.
        message: String,
    },
    /// The last lease was dropped while a caller waited.
    #[error("failed to get certificate for {identity}: no longer wanted")]
    Forgotten {
        /// The identity asked for.
        identity: Identity,
    },
}

impl Error {
    /// The error and its sources on one line, for a log or an answer.
    pub fn chain(&self) -> String {
        ambit_core::chain(self)
    }
}
