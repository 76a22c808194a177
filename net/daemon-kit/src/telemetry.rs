//! What a daemon says about itself: [`logs`] and [`metrics`].

pub mod exposition;
pub mod instruments;
mod json;
pub mod logs;
pub mod metrics;
mod process;
mod queue;
