//! The waypoint: a layer-7 proxy in front of services. It takes HBONE from clients' ztunnels and sends
//! requests on by HBONE to the ztunnels of the endpoints.
//!
//! A request: [`accept`] (who asks) → [`tunnel`] (what was dialled, and what is spoken) → [`request`] (route,
//! filters, backend) → [`forward`] (endpoint, tries) → respond → [`report`], once. What is not HTTP goes from
//! [`tunnel`] to [`tcp`]. Connections to endpoints are shared between requests in [`upstream`].
//!
//! Everything of one connection happens on one [`worker::Worker`], a thread with a runtime of its own.
//! [`daemon`] puts the workers and everything around them together.

#![warn(missing_docs)]

pub mod accept;
mod admin;
mod body;
pub mod config;
pub mod daemon;
mod delimited;
mod downstream;
mod endpoint;
mod error;
mod failure;
mod filters;
mod follower;
mod forward;
pub mod framing;
mod head;
mod headers;
mod http_server;
pub mod metrics;
mod mirror;
pub mod plain;
mod reply;
mod report;
mod request;
mod sniff;
mod stream;
mod tcp;
mod tunnel;
mod upgrade;
mod upstream;
pub mod waypoint;
pub mod worker;

pub use error::Error;
