//! Every decision of Ambit, and nothing else: pure and synchronous, without tokio, sockets or a clock.
//!
//! Entry points:
//!
//! - [`derive::World`] turns the objects that users write into changes of the mesh.
//! - [`mesh::Mesh`] holds the state; [`mesh::Mesh::apply`] changes it.
//! - [`ownership::owner`] decides whose an address is, and [`outbound::plan`] where a connection goes.
//! - [`policy::authorize`] and [`inbound::authorize_tunnel`] decide whether a connection is permitted.
//! - [`direct::verdict`] decides whether the kernel may cache that decision.
//! - [`link::classify`] decides what kind of link a pod has, and so whether it may.
//! - [`unlisted::may_stay`] decides about connections that were open before their pod was enrolled.
//! - [`fronted::fronted`] says what a waypoint serves, [`protocol::sniff`] what its client speaks, and
//!   [`route::Table`] which rule serves an HTTP request.
//!
//! Every refusal is a [`Denial`], which has a [`Reason`]. [`chain`] prints an error with its causes.

#![warn(missing_docs)]

pub mod balance;
mod causes;
mod denial;
pub mod derive;
pub mod direct;
pub mod enrolment;
pub mod fronted;
pub mod inbound;
pub mod link;
pub mod mesh;
pub mod model;
pub mod outbound;
pub mod outlier;
pub mod ownership;
pub mod policy;
pub mod protocol;
mod reason;
pub mod route;
#[cfg(feature = "testing")]
pub mod testing;
pub mod unlisted;

pub use causes::{chain, chain_as};
pub use denial::{Access, Denial};
pub use reason::Reason;
