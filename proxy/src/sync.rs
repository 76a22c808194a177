//! Follows the controller: [`MeshSync::apply`] takes what xDS brings to everything that depends on it, in the
//! one order that is safe (`docs/decisions/073`).

use std::sync::Arc;

use ambit_core::mesh::{Mesh, Touched};
use ambit_xds::client::{Rejected, Update};

use crate::connections::Connections;
use crate::state::MeshState;

/// A change of the mesh.
#[derive(Clone, Copy, Debug)]
pub struct MeshChange<'a> {
    /// None at first.
    pub before: Option<&'a Mesh>,
    /// What decisions see now.
    pub after: &'a Mesh,
    /// What has changed. None: everything is new.
    pub touched: Option<&'a Touched>,
}

/// What else must follow the mesh, beside the decisions in this process: in ztunnel the kernel, which
/// carries connections and caches verdicts by itself; at least the
/// [`Identities`](crate::identity::Identities) of served workloads.
///
/// The calls for one change come in the order of the methods, after the mesh was published.
pub trait Follower: Send + 'static {
    /// What [`void`](Self::void) found that has to be rechecked.
    type Scope;

    /// Invalidates cached verdicts that the change may have made stale.
    fn void(&self, change: &MeshChange<'_>) -> Self::Scope;

    /// Brings everything else in line with the mesh: identities, capture, names.
    fn follow(&self, change: &MeshChange<'_>);

    /// Has open connections that are carried elsewhere rechecked, soon.
    fn recheck(&self, scope: Self::Scope);
}

/// The mesh as received. Others see it through [`MeshState`], once it is complete.
#[derive(Debug)]
pub struct MeshSync<F> {
    state: Arc<MeshState>,
    connections: Arc<Connections>,
    follower: F,
    mesh: Mesh,
    synced: bool,
}

impl<F: Follower> MeshSync<F> {
    /// Nothing is received yet.
    pub fn new(state: Arc<MeshState>, connections: Arc<Connections>, follower: F) -> Self {
        Self { state, connections, follower, mesh: Mesh::new(), synced: false }
    }

    /// Applies one update.
    pub fn apply(&mut self, update: Update) -> Vec<Rejected> {
        let touched = self.mesh.apply(update.changes);
        if !self.synced && update.synced {
            self.synced = true;
            self.publish(None);
        } else if self.synced && !touched.is_empty() {
            self.publish(Some(&touched));
        }
        Vec::new()
    }

    /// Order: decisions first, then cached verdicts, then capture maps, then open connections.
    fn publish(&self, touched: Option<&Touched>) {
        let before = self.state.mesh();
        self.state.publish(self.mesh.clone());
        let change = MeshChange { before: before.as_deref(), after: &self.mesh, touched };
        let scope = self.follower.void(&change);
        self.follower.follow(&change);
        self.connections.recheck(&self.mesh, touched);
        self.follower.recheck(scope);
        self.state.enforced();
    }
}

#[cfg(test)]
mod tests;
