//! The crate's errors: [`Error`].

use std::io;
use std::path::PathBuf;

use crate::netns::NetworkNamespaceError;

/// What can go wrong between a source and the daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon's side could not make its socket.
    #[error("failed to listen on enrolment socket {path}")]
    Listen {
        /// Where the socket was to lie.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No daemon answered at the socket in time.
    #[error("failed to connect to enrolment socket {path}")]
    Connect {
        /// Where the socket lies.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or the answer did not come in time.
    #[error("failed to {operation} over the enrolment socket")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The peer sent something that is not a message of the protocol.
    #[error("failed to parse enrolment message: {0}")]
    Message(String),
    /// The descriptor is not one of a pod's network namespace.
    #[error("failed to use the descriptor of an enrolment message")]
    Namespace(#[from] NetworkNamespaceError),
    /// The daemon understood and refused.
    #[error("failed to {request}: refused by the daemon: {reason}")]
    Refused {
        /// What was asked for.
        request: String,
        /// The daemon's reason.
        reason: String,
    },
    /// A source's name is not `[a-z0-9-]{1,32}`.
    #[error("failed to parse source name {0:?}: must be 1 to 32 of a-z, 0-9, '-'")]
    SourceName(String),
}
