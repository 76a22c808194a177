//! What can go wrong in the daemon as a whole. What goes wrong with one request is a
//! [`Failure`](crate::failure::Failure) instead.

use std::io;
use std::net::SocketAddr;

/// Why the waypoint cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refuses.
    #[error("failed to {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The HBONE port cannot be listened on.
    #[error("failed to listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Configuration, bootstrap, logs, signals or the admin servers.
    #[error(transparent)]
    Daemon(#[from] ambit_daemon_kit::Error),
    /// Certificates cannot be kept.
    #[error(transparent)]
    Certificates(#[from] ambit_certificates::Error),
    /// The controller cannot be followed.
    #[error(transparent)]
    Xds(#[from] ambit_xds::Error),
    /// Neither a bootstrap file nor a controller is configured.
    #[error("bootstrap: set either bootstrap or controller")]
    NoController,
}
