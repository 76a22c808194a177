//! The state that the reconciling thread writes and servers read: snapshots, replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};

use ambit_core::derive::Condition;
use ambit_core::mesh::Mesh;
use ambit_core::model::{ServiceKey, Workload};
use arc_swap::ArcSwap;

use crate::objects::catalog::Problem;

/// The current state.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) mesh: ArcSwap<Mesh>,
    /// The services of all waypoints.
    pub(crate) waypoints: ArcSwap<BTreeSet<ServiceKey>>,
    pub(crate) status: ArcSwap<Status>,
}

/// Whether a workload serves one of the waypoints' services.
pub(crate) fn is_waypoint(workload: &Workload, waypoints: &BTreeSet<ServiceKey>) -> bool {
    workload.services.keys().any(|service| waypoints.contains(service))
}

/// The state of the objects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    /// How many of each kind are in force.
    pub(crate) objects: BTreeMap<&'static str, usize>,
    pub(crate) files: usize,
    /// Folders that cannot be listed, and why.
    pub(crate) unreachable: BTreeMap<String, String>,
    pub(crate) problems: BTreeSet<Problem>,
    /// The conditions of derivation that have a message.
    pub(crate) conditions: Vec<Condition>,
}
