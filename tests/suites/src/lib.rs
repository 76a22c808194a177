//! What the suites share: a server that greets with its name and its client's address, a client that asks it,
//! load, and tables of rows.
//!
//! Servers and clients run on threads of the test, inside the pods' namespaces: their sockets are captured
//! like any other's.

pub mod churn;
pub mod endpoints;
pub mod every_path;
pub mod feed;
pub mod forge;
pub mod hbone;
mod held;
pub mod kubernetes;
mod listening;
mod load;
pub mod pair;
pub mod paths;
mod rows;
pub mod scale;
pub mod shares;
pub mod shop;
pub mod slope;
mod talk;
pub mod web;

pub use held::{CA_DESCRIPTORS, Held};
pub use load::{Load, Report};
pub use rows::Rows;
pub use talk::{Answer, Server, TIMEOUT, ask, connect, exchange, greeted};

/// A text to look for on the wire. Long enough that no ciphertext holds it by chance.
pub const MARKER: &[u8] = b"<<< only the two peers may read this text >>>";

/// A payload that holds the marker so often that no way of cutting it into packets hides it.
pub fn marked_payload(size: usize) -> Vec<u8> {
    MARKER.iter().copied().cycle().take(size).collect()
}
