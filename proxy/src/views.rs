//! What the admin interface shows as JSON: connections ([`ConnectionView`], [`EndedView`]) and the mesh
//! ([`mesh()`], [`xds()`]).

mod config;
mod connection;

pub use config::{mesh, xds};
pub use connection::{ConnectionView, EndedView};
