//! Why the agent cannot run.

use std::io;

use ambit_kube::access::AccessError;
use ambit_kube::retry::RequestError;

/// What ends the agent. `operation` is an infinitive with its object: `start the runtime`.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A system call failed.
    #[error("failed to {operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// There is no configuration for an API client.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The API server refused, or could not be reached.
    #[error("failed to {operation}")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// The API server's answer, or the client's error.
        source: RequestError,
    },
    /// The API server's answer lacks something.
    #[error("failed to read the API server's answer: {0}")]
    Answer(&'static str),
    /// Configuration, logs, signals or the admin server.
    #[error(transparent)]
    Runtime(#[from] ambit_daemon_kit::Error),
}

/// Names the operation that a system call failed in.
pub(crate) fn io_error(operation: &'static str) -> impl FnOnce(io::Error) -> AgentError {
    move |source| AgentError::Io { operation, source }
}
