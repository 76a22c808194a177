//! The crate's errors: [`Error`].

use std::io;

/// Why the kernel did not tell about, or close, a socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The netlink socket could not be made.
    #[error("failed to open netlink socket")]
    Open(#[source] io::Error),
    /// The connection that closing is tried on could not be made.
    #[error("failed to connect over loopback")]
    Try(#[source] io::Error),
    /// A request could not be sent, or its answer not be read.
    #[error("failed to {operation} over netlink")]
    Transfer {
        /// What was asked for.
        operation: &'static str,
        /// Why the message was not carried.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("failed to {operation}: refused by the kernel")]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// An answer does not follow the kernel's interface.
    #[error("failed to parse netlink message: {0}")]
    Malformed(&'static str),
}
