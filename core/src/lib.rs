//! Every decision Ambit takes, and nothing else: pure, synchronous, no tokio, no sockets, no clock.
//!
//! Ways in: [`mesh::Mesh`] holds the state and [`mesh::Mesh::apply`] changes it; [`outbound::plan`] says
//! where a connection goes; [`inbound::request`] and [`policy::authorize`] say whether it may;
//! [`derive::World`] turns the objects users write into the changes that [`mesh::Mesh`] takes. Every refusal
//! is a [`Denial`]; errors are put on a line by [`chain`].

pub mod balance;
mod causes;
mod denial;
pub mod derive;
pub mod direct;
pub mod enrolment;
pub mod health;
pub mod inbound;
pub mod mesh;
pub mod model;
pub mod outbound;
pub mod policy;
#[cfg(feature = "testing")]
pub mod testing;

pub use causes::chain;
pub use denial::{Asked, Denial};
