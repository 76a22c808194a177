//! What a daemon says about itself: [`logs`], [`metrics`], and for each connection one report that is
//! both ([`connection`]).

mod access;
pub mod connection;
pub mod exposition;
pub mod instruments;
mod json;
mod labels;
pub mod logs;
pub mod metrics;
mod process;
mod queue;
pub mod recent;
#[cfg(test)]
mod tests;
