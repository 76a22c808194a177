//! TCP sockets of a network namespace, listed and closed from outside the processes that hold them:
//! `NETLINK_SOCK_DIAG` of Linux.
//!
//! Entry points: [`Diag::open`] in the namespace in question, then [`Diag::sockets`] and [`Diag::destroy`].
#![warn(missing_docs)]

mod diag;
mod error;
mod message;
mod socket;

pub use diag::Diag;
pub use error::Error;
pub use socket::{State, TcpSocket};
