//! What a daemon says about itself: [`logs`], [`metrics`](mod@metrics), and for each connection one report that is
//! both ([`connection`]).

mod access;
pub mod connection;
mod labels;
pub mod logs;
pub mod metrics;
mod queue;
#[cfg(test)]
mod tests;
