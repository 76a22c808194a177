//! Certificates: one per workload identity, got from the CA, renewed at half-life, kept in memory only.
//!
//! Entry point: [`Certificates`]. [`Certificates::keep`] gives a [`Lease`]: while one lives, the identity's
//! certificate is fetched and renewed. [`Certificates::current`] is what a handshake takes;
//! [`Certificates::changes`] sends the identities that got a new one.
#![warn(missing_docs)]

mod certificates;
mod clock;
mod entry;
mod error;
mod issue;
mod metrics;
mod renew;
mod schedule;
mod signer;
mod store;
#[cfg(test)]
mod tests;

pub use certificates::{Certificates, Lease, Settings, Status};
pub use error::Error;
pub use signer::Signer;
