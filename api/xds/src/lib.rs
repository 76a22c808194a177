//! The wire between controller and daemons: Istio's messages, delta xDS and the CA call, and nothing about
//! workloads' own traffic.
//!
//! Ways in: [`client::run`] keeps a daemon's mesh equal to the controller's; [`server::Publisher`] and
//! [`server::Server`] are the other end; [`ca`] asks for certificates and answers; [`convert`] turns the
//! model into messages and back.

mod auth;
pub mod ca;
pub mod client;
pub mod convert;
mod error;
pub mod proto;
mod resource;
pub mod server;

pub use auth::{Authenticate, NodeName, Unauthenticated};
pub use error::Error;
pub use resource::ResourceType;
/// What implementations of [`Authenticate`] are marked with.
pub use tonic::async_trait;
