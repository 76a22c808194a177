//! What the controller, the node agent and the command line do alike at an API server.
//!
//! - [`access`]: the client's configuration, from a kubeconfig or from the pod's service account.
//! - [`error`]: error chains in the API server's own words, and the status codes that are no failure.
//! - [`retry`]: deadlines and pauses between attempts.
//! - [`object`]: writing and deleting one object.
//! - [`annotations`]: the annotations that Ambit writes on pods.
//! - [`remains`]: what is left in the API when Ambit's own parts are gone.

#![warn(missing_docs)]

pub mod access;
pub mod annotations;
pub mod error;
pub mod object;
pub mod remains;
pub mod retry;
