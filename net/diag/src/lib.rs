//! What the kernel tells of a network namespace over netlink: TCP sockets, listed and closed from outside the
//! processes that hold them (`NETLINK_SOCK_DIAG`), and links (`NETLINK_ROUTE`).
//!
//! Entry points: [`Diag::open`] in the namespace in question, then [`Diag::sockets`] and [`Diag::destroy`];
//! [`Links::open`] and [`LinkEvents::open`] likewise; and [`can_close_sockets`].
#![warn(missing_docs)]

mod abort;
mod diag;
mod error;
mod link;
mod links;
mod message;
mod socket;

pub use abort::can_close_sockets;
pub use diag::Diag;
pub use error::Error;
pub use link::{Change, Interface};
pub use links::{LinkEvents, Links};
pub use socket::{State, TcpSocket};
