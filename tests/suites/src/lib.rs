//! What the suites share: a server that says who it is and whom it sees, a client that asks it, load, and
//! tables of rows.
//!
//! Servers and clients run on threads of the test, inside the pods' namespaces: their sockets are captured
//! like any other's.

pub mod churn;
pub mod feed;
pub mod hbone;
mod held;
pub mod kubernetes;
mod load;
pub mod pair;
pub mod paths;
mod rows;
pub mod scale;
pub mod shares;
pub mod shop;
pub mod slope;
mod talk;

pub use held::Held;
pub use load::{Load, Report};
pub use rows::Rows;
pub use talk::{Answer, Server, TIMEOUT, ask, connect, exchange};

/// What is looked for on the wire. Long enough that no ciphertext holds it by chance.
pub const MARKER: &[u8] = b"<<< nobody but the two of us may read this >>>";

/// A payload that holds the marker so often that no way of cutting it into packets hides it.
pub fn marked_payload(size: usize) -> Vec<u8> {
    MARKER.iter().copied().cycle().take(size).collect()
}
