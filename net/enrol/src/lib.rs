//! Enrolment: how a node's pods get into the mesh.
//!
//! A *source* (a CNI plugin, a test's harness, `ambit run`) tells the node's daemon over a Unix socket which
//! workloads there are, handing over a descriptor of each one's network namespace. The protocol is one JSON
//! message per packet (`SOCK_SEQPACKET`), each answered before the next is read; only root may speak it.
//!
//! Way in: [`Client`] for sources that stay, [`enrol_once`] for those that do not, [`Server`] and [`serve`]
//! for the daemon.

mod client;
mod connection;
mod message;
mod netns;
mod packet;
mod server;

pub use client::{Client, enrol_once, release_once};
pub use message::{Answer, Message, PROTOCOL_VERSION, Pod, SourceName};
pub use netns::{NamespaceId, NetworkNamespace, NetworkNamespaceError};
pub use server::{Handler, Request, Server, serve};

use std::io;
use std::path::PathBuf;

/// What can go wrong between a source and the daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon's side could not make its socket.
    #[error("listening on enrolment socket {path}")]
    Listen { path: PathBuf, source: io::Error },
    /// No daemon answered at the socket in time.
    #[error("connecting to enrolment socket {path}")]
    Connect { path: PathBuf, source: io::Error },
    /// The connection broke, or the answer did not come in time.
    #[error("{operation} over the enrolment socket")]
    Io { operation: &'static str, source: io::Error },
    /// The peer sent something that is no message of the protocol.
    #[error("enrolment message: {0}")]
    Message(String),
    /// The descriptor is not one of a pod's network namespace.
    #[error("descriptor in enrolment message")]
    Namespace(#[from] NetworkNamespaceError),
    /// The daemon understood and said no.
    #[error("{request} refused by the daemon: {reason}")]
    Refused { request: String, reason: String },
    /// A source's name is not `[a-z0-9-]{1,32}`.
    #[error("{0:?} is not a source name: 1 to 32 of a-z, 0-9, '-'")]
    SourceName(String),
}
