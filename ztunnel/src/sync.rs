//! Follows the controller: [`Sync::apply`] takes what xDS brings to everything that depends on it.

use std::sync::Arc;

use ambit_core::mesh::{Mesh, Touched};
use ambit_xds::client::{Rejected, Update};

use crate::daemon::Node;

/// The mesh as received. Others see it through [`State`](crate::state::State), once it is complete.
pub(crate) struct Sync {
    node: Arc<Node>,
    mesh: Mesh,
    synced: bool,
}

impl Sync {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, mesh: Mesh::new(), synced: false }
    }

    /// One update. Order: decisions first, then what the kernel remembers of earlier ones, then what it sends
    /// to be decided, then connections that were decided before.
    pub(crate) fn apply(&mut self, update: Update) -> Vec<Rejected> {
        let touched = self.mesh.apply(update.changes);
        if !self.synced && update.synced {
            self.synced = true;
            self.publish(None);
        } else if self.synced && !touched.is_empty() {
            self.publish(Some(&touched));
        }
        Vec::new()
    }

    /// Makes the mesh known; without `touched` everything is looked at.
    fn publish(&self, touched: Option<&Touched>) {
        let node = &self.node;
        let before = node.state.mesh();
        node.state.publish(self.mesh.clone());
        let whom = node.direct.void(node, before.as_deref(), &self.mesh, touched);
        let pods = node.pods.all();
        for pod in &pods {
            if touched.is_none_or(|touched| touched.workloads.contains(&pod.uid)) {
                node.identify(&self.mesh, pod);
            }
        }
        match touched {
            Some(touched) => node.kernel.follow(&self.mesh, touched, &pods),
            None => node.kernel.reconcile(&self.mesh, &pods),
        }
        node.direct.follow(node, before.as_deref(), &self.mesh, touched);
        if touched.is_none() {
            // All that an earlier daemon said was taken back above.
            node.direct.renew(node);
        }
        node.connections.recheck(&self.mesh, touched);
        node.direct.look_at(whom);
        node.state.enforced();
    }
}
