//! The daemon's duties towards the kernel when the mesh changes: [`KernelFollower`].

use std::sync::Arc;

use ambit_proxy::sync::{Follower, MeshChange};

use crate::direct::Scope;
use crate::node::Node;

/// Keeps the kernel's side equal to the mesh.
pub(crate) struct KernelFollower(pub(crate) Arc<Node>);

impl Follower for KernelFollower {
    type Scope = Scope;

    fn void(&self, change: &MeshChange<'_>) -> Scope {
        self.0.direct.void(change)
    }

    fn follow(&self, change: &MeshChange<'_>) {
        let node = &self.0;
        node.identities.follow(change);
        let pods = node.pods.all();
        match change.touched {
            Some(touched) => node.capture.follow(change.after, touched, &pods),
            None => node.capture.reconcile(change.after, &pods),
        }
        node.direct.follow(change);
        if change.touched.is_none() {
            // All that an earlier daemon cached has been voided.
            node.renew_leases();
        }
    }

    fn recheck(&self, scope: Scope) {
        self.0.direct.recheck(scope);
    }
}
