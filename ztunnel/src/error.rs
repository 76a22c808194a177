//! What can go wrong in the daemon as a whole. What goes wrong with one connection is an [`Ending`] instead.
//!
//! [`Ending`]: ambit_proxy::report::Ending

use std::io;
use std::path::PathBuf;

/// Why the daemon cannot start or a workload cannot be enrolled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to parse field instance")]
    Instance { source: ambit_loader::InstanceNameError },
    #[error("failed to {operation} {path}", path = path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("failed to {operation}")]
    System { operation: &'static str, source: io::Error },
    #[error("failed to {operation}")]
    Dataplane { operation: &'static str, source: ambit_loader::Error },
    #[error("failed to {operation} {workload}")]
    Pod { operation: &'static str, workload: String, source: ambit_loader::Error },
    #[error("failed to create the {socket} in the namespace of {workload}")]
    Socket { socket: &'static str, workload: String, source: io::Error },
    #[error("node: bootstrap file says {bootstrap}, configuration says {config}")]
    NodeMismatch { bootstrap: String, config: String },
    #[error("bootstrap: set either bootstrap or controller")]
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
