//! Enrolment: how a node's pods get into the mesh.
//!
//! A *source* (a CNI plugin, the node agent, a test's harness) tells the node's daemon over a Unix socket
//! which workloads there are, handing over a descriptor of each one's network namespace. The protocol is one
//! JSON message per packet (`SOCK_SEQPACKET`), each answered before the next is read; only root may speak it.
//!
//! Entry points: [`Client`] for sources that stay, [`enrol_once`] for those that do not, [`Server`] and
//! [`serve`] for the daemon.
#![warn(missing_docs)]

mod client;
mod connection;
mod error;
mod message;
mod netns;
mod packet;
mod server;

pub use client::{Client, ending_once, enrol_once, release_once};
pub use error::Error;
pub use message::{Answer, Message, PROTOCOL_VERSION, Pod, SourceName};
pub use netns::{NamespaceId, NetworkNamespace, NetworkNamespaceError};
pub use server::{Handler, Request, Server, serve};
