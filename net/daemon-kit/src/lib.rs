//! What every daemon of the mesh needs around its own work, whatever that work is.
//!
//! Entry points: [`config::read`] (configuration files), [`bootstrap::Bootstrap::read`] and
//! [`controller::Controller`] (how a node finds its controller), [`telemetry`] (logs and metrics),
//! [`admin::Admin::start`] (the HTTP servers for people and Prometheus), [`drain::Drain`] and [`signals`]
//! (how a daemon is told to end), [`exit::status`] (how it says why), [`allocator`] (freed memory goes back
//! to the system).
#![warn(missing_docs)]

pub mod admin;
pub mod allocator;
pub mod bootstrap;
pub mod config;
pub mod controller;
pub mod drain;
mod error;
pub mod exit;
pub mod roots;
pub mod signals;
pub mod telemetry;

pub use error::{Error, RootsError};
