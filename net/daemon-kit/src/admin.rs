//! The HTTP servers for people, Prometheus and kubelet: admin, metrics, readiness.
//!
//! A binary gives each server a [`Router`]; [`Admin::start`] serves all of them on one
//! thread of their own, so that a large answer never takes a data path worker's time.

mod logging;
mod readiness;
mod router;
mod server;

pub use logging::logging_routes;
pub use readiness::{Condition, Readiness};
pub use router::{Request, Response, Router};
pub use server::{Admin, Server};
