//! The crate's errors: which operation failed, on which object, and why.

use std::net::SocketAddr;
use std::path::PathBuf;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading {}", path.display())]
    ReadConfig { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Config { path: PathBuf, message: String },
    #[error("reading bootstrap file {}", path.display())]
    ReadBootstrap { path: PathBuf, source: std::io::Error },
    #[error(
        "bootstrap file {} holds a token and must be for its owner only: its mode is {mode:04o}, set it to 0600",
        path.display()
    )]
    BootstrapMode { path: PathBuf, mode: u32 },
    #[error("bootstrap file {}: {field}: {message}", path.display())]
    ParseBootstrap { path: PathBuf, field: String, message: String },
    #[error("writing bootstrap file {}", path.display())]
    WriteBootstrap { path: PathBuf, source: std::io::Error },
    #[error("reading the controller's roots {}", path.display())]
    ReadRoots { path: PathBuf, source: std::io::Error },
    #[error("reading the token {}", path.display())]
    ReadToken { path: PathBuf, source: std::io::Error },
    #[error("the token {} is empty or not printable ASCII", path.display())]
    TokenForm { path: PathBuf },
    #[error("log filter {filter:?}: {message}")]
    LogFilter { filter: String, message: String },
    #[error("starting logs: {message}")]
    InstallLogs { message: String },
    #[error("{server} server: listening on {address}")]
    Bind { server: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("starting the admin thread")]
    AdminThread { source: std::io::Error },
    #[error("installing the handler of {signal}")]
    Signal { signal: &'static str, source: std::io::Error },
    #[error("{holders} tasks still run after {} s of draining", deadline.as_secs_f32())]
    DrainDeadline { holders: usize, deadline: std::time::Duration },
    #[error("reading the trusted roots: {message}")]
    Roots { message: String },
}

impl Error {
    /// The error and its sources on one line, for a log or an answer.
    pub fn chain(&self) -> String {
        ambit_core::chain(self)
    }
}
