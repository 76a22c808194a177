//! What every proxy of the mesh does, without pods and without eBPF: `docs/decisions/220`.
//!
//! Entry points: [`proxy::Proxy`] (the parts that connections share), [`workload::LocalWorkload`] (a workload
//! that is served, with its certificate), [`outbound::serve`] and [`inbound::tunnels`] (one connection from
//! its acceptance to its report), [`sync::MeshSync`] (the mesh kept equal to the controller's),
//! [`report`] (each connection's metrics and access log record). `examples/hbone.rs` puts them together.

#![warn(missing_docs)]

pub mod connections;
pub mod controller;
pub mod dial;
pub mod endpoints;
pub mod identity;
pub mod inbound;
pub mod metrics;
pub mod outbound;
pub mod proxy;
pub mod relay;
pub mod report;
pub mod shares;
pub mod socket;
pub mod state;
pub mod sync;
pub mod tasks;
#[cfg(feature = "testing")]
pub mod testing;
pub mod views;
pub mod workload;
