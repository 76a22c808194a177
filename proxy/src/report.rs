//! The report of a connection: Istio's TCP metrics while it lives and one access log record when it ends.
//!
//! [`opened`] when bytes may flow, then [`OpenConnection::progress`] as often as wanted and
//! [`OpenConnection::closed`] once; [`failed`] for a connection that was refused or could not be made.
//! Connections that the kernel carries are reported from its records, with [`observed`].

mod access_log;
mod connection;
mod ended;
pub mod ending;
pub mod observed;
mod open;
mod recent;
mod series;
#[cfg(test)]
mod tests;

pub use connection::{Bytes, ConnectionInfo, Direction, Ending, Flag, Party, Path};
pub use ended::{forget_series_after, show};
pub use open::{OpenConnection, failed, opened};
pub use recent::{Ended, recent};
