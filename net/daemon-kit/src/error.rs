//! The crate's errors: which operation failed, on which object, and why.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use std::{error, fmt, io};

/// Why a daemon cannot start, cannot go on, or did not end in time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be read.
    #[error("failed to read configuration {}", path.display())]
    ReadConfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration is not valid.
    #[error("{}: {message}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field and what is wrong with it.
        message: String,
    },
    /// The bootstrap file cannot be read.
    #[error("failed to read bootstrap file {}", path.display())]
    ReadBootstrap {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The bootstrap file can be read by others.
    #[error(
        "failed to read bootstrap file {}: it holds a token and has mode {mode:04o}, set it to 0600",
        path.display()
    )]
    BootstrapMode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The bootstrap file is not valid.
    #[error("{}: {field}: {message}", path.display())]
    ParseBootstrap {
        /// The file.
        path: PathBuf,
        /// The field in question.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// The bootstrap file cannot be written.
    #[error("failed to write bootstrap file {}", path.display())]
    WriteBootstrap {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of the controller's roots cannot be read.
    #[error("failed to read controller roots {}", path.display())]
    ReadRoots {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon's token cannot be read.
    #[error("failed to read token {}", path.display())]
    ReadToken {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon's token cannot be sent in a request.
    #[error("failed to read token {}: empty or not printable ASCII", path.display())]
    TokenForm {
        /// The file.
        path: PathBuf,
    },
    /// A log filter is not valid.
    #[error("log filter {filter:?}: {message}")]
    LogFilter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        message: String,
    },
    /// Logs cannot be started.
    #[error("failed to start logs")]
    InstallLogs {
        /// Why.
        source: Box<dyn error::Error + Send + Sync>,
    },
    /// An HTTP server's address cannot be listened on.
    #[error("failed to listen on {address} for the {server} server")]
    Bind {
        /// The server's name.
        server: &'static str,
        /// The address to listen on.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The thread of the HTTP servers cannot be started.
    #[error("failed to start admin thread")]
    AdminThread {
        /// Why.
        source: io::Error,
    },
    /// A signal cannot be handled.
    #[error("failed to install handler of {signal}")]
    Signal {
        /// The signal's name.
        signal: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Work was still running when the time to drain was over; it was cut.
    #[error("failed to drain within {} s: {holders} tasks still running", deadline.as_secs_f32())]
    DrainDeadline {
        /// How many tasks.
        holders: usize,
        /// The time they had.
        deadline: Duration,
    },
    /// Roots are not PEM, or there are none.
    #[error("failed to parse trusted roots: {0}")]
    Roots(RootsError),
}

/// Why a text holds no roots.
#[derive(Debug)]
pub enum RootsError {
    /// There is no certificate in it.
    Empty,
    /// It is not PEM.
    Pem(rustls_pki_types::pem::Error),
}

impl fmt::Display for RootsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("no certificate found"),
            Self::Pem(error) => error.fmt(f),
        }
    }
}

impl Error {
    /// The error and its sources on one line, for a log or an answer.
    pub fn chain(&self) -> String {
        ambit_core::chain(self)
    }
}
