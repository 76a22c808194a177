//! Which endpoint of a service serves a connection: [`Choice`].
//!
//! All ways to choose share one set of eligible endpoints: [`Choice::pick`] chooses at random,
//! [`Choice::sticky`] chooses the same one for a client each time, [`table`] lists the shares for the kernel.

mod affinity;
mod choice;
mod table;

pub use choice::{Avoid, Choice, Endpoint, sticky};
pub use table::table;
