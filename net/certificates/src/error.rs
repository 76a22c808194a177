//! The crate's errors: which operation failed, for which identity, and why.

use std::error::Error as StdError;
use std::time::Duration;

use ambit_core::model::Identity;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    ReadRoots(#[from] ambit_daemon_kit::Error),
    #[error("reading the trusted roots: {message}")]
    Roots { message: String },
    #[error("making a key for {identity}: {message}")]
    MakeKey { identity: Identity, message: String },
    #[error("signing a certificate for {identity}")]
    Sign { identity: Identity, source: Box<dyn StdError + Send + Sync> },
    #[error("signing a certificate for {identity}: no answer within {} s", timeout.as_secs_f32())]
    SignTimeout { identity: Identity, timeout: Duration },
    #[error("certificate returned for {identity} refused: {message}")]
    Refused { identity: Identity, message: String },
    #[error("no certificate for {identity}: no longer wanted")]
    Forgotten { identity: Identity },
}

impl Error {
    /// The error and its sources on one line, for a log or an answer.
    pub fn chain(&self) -> String {
        ambit_core::chain(self)
    }
}
