//! A large cluster that is simulated against a real API server: its objects, the controller beside it, and a
//! chart of what was measured.

mod api;
mod chart;
mod controller;
mod population;

pub use api::Api;
pub use chart::{Stage, draw};
pub use controller::{Controller, Usage};
pub use population::{populate, status};

/// Pods in the mesh.
pub const PODS: usize = 10_000;
/// Services, each with as many pods as another.
pub const SERVICES: usize = 1_000;
/// Nodes, and the most daemons that are connected.
pub const CLIENTS: usize = 200;
const NAMESPACES: usize = 100;
