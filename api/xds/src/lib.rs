//! The protocol between controller and daemons: delta xDS and certificate signing, with Istio's messages.
//!
//! Entry points:
//!
//! - [`client::run`] keeps a daemon's mesh equal to the controller's.
//! - [`server::Publisher`] and [`server::Server`] are the controller's side.
//! - [`ca`] has both sides of certificate signing.
//! - [`convert`] encodes the model as messages and decodes it.

#![warn(missing_docs)]

mod auth;
pub mod ca;
pub mod client;
pub mod convert;
mod error;
pub mod proto;
mod resource;
pub mod server;
mod type_url;

pub use auth::{Authenticate, Caller, NodeName, Unauthenticated};
pub use error::Error;
pub use resource::ResourceType;
/// The attribute of implementations of [`Authenticate`].
pub use tonic::async_trait;
