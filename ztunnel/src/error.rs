//! What can go wrong in the daemon as a whole. What goes wrong with one connection is an [`Ending`] instead.
//!
//! [`Ending`]: ambit_daemon_kit::telemetry::connection::Ending

use std::io;
use std::path::PathBuf;

/// Why the daemon cannot start or a workload cannot be enrolled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("configuration, field instance")]
    Instance { source: ambit_loader::InstanceNameError },
    #[error("{operation} {path}")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{operation}")]
    System { operation: &'static str, source: io::Error },
    #[error("the kernel's side of {object}")]
    Dataplane { object: String, source: ambit_loader::Error },
    #[error("making the {socket} in the namespace of {workload}")]
    Socket { socket: &'static str, workload: String, source: io::Error },
    #[error("bootstrap file says node {bootstrap}, configuration says {config}")]
    NodeMismatch { bootstrap: String, config: String },
    #[error("configuration says neither bootstrap nor controller")]
    NoController,
    #[error(transparent)]
    Daemon(#[from] ambit_daemon_kit::Error),
    #[error(transparent)]
    Certificates(#[from] ambit_certificates::Error),
    #[error(transparent)]
    Enrol(#[from] ambit_enrol::Error),
    #[error(transparent)]
    Xds(#[from] ambit_xds::Error),
}
