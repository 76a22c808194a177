//! The mesh as decisions see it: [`MeshState::wait`] gives a snapshot that is complete enough to decide with.
//!
//! Nothing is visible before the first full synchronization: a mesh without its policies would permit too
//! much.

use std::sync::Arc;
use std::time::Duration;

use ambit_core::mesh::Mesh;
use ambit_core::model::{Workload, WorkloadUid};
use arc_swap::ArcSwapOption;
use tokio::sync::watch;

/// How long a connection waits for the configuration and certificate that its decision needs: a pod may
/// connect before its own workload is known. After that it is refused.
pub const CONFIGURATION_TIMEOUT: Duration = Duration::from_secs(5);

/// The newest mesh, for readers on every thread.
#[derive(Debug, Default)]
pub struct MeshState {
    mesh: ArcSwapOption<Mesh>,
    /// The newest mesh that the follower (in ztunnel: the kernel) has applied too.
    enforced: ArcSwapOption<Mesh>,
    revision: watch::Sender<u64>,
}

impl MeshState {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The newest mesh; none before the first full synchronization.
    pub fn mesh(&self) -> Option<Arc<Mesh>> {
        self.mesh.load_full()
    }

    /// Makes a mesh the one that decisions see.
    pub fn publish(&self, mesh: Mesh) {
        self.mesh.store(Some(Arc::new(mesh)));
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Notes that the mesh published last is in force for new connections, also where the kernel decides;
    /// open ones are being rechecked.
    pub fn enforced(&self) {
        self.enforced.store(self.mesh());
    }

    /// Whether a mesh is in force for new connections.
    pub fn is_enforced(&self, mesh: &Arc<Mesh>) -> bool {
        self.enforced.load().as_ref().is_some_and(|enforced| Arc::ptr_eq(enforced, mesh))
    }

    /// The newest mesh, once there is one and the workload is in it. After [`CONFIGURATION_TIMEOUT`] what
    /// there is then.
    pub async fn wait(&self, uid: &WorkloadUid) -> Option<Arc<Mesh>> {
        if let Some(mesh) = self.mesh()
            && mesh.workload(uid).is_some()
        {
            return Some(mesh);
        }
        let mut revision = self.revision.subscribe();
        let known = async {
            loop {
                if let Some(mesh) = self.mesh()
                    && mesh.workload(uid).is_some()
                {
                    return Some(mesh);
                }
                // The sender lives in `self`, so this does not fail.
                revision.changed().await.ok()?;
            }
        };
        match tokio::time::timeout(CONFIGURATION_TIMEOUT, known).await {
            Ok(mesh) => mesh,
            Err(_) => self.mesh(),
        }
    }

    /// Waits for the first full synchronization; false if it did not come in time.
    pub async fn synced_within(&self, time: Duration) -> bool {
        let mut revision = self.revision.subscribe();
        tokio::time::timeout(time, revision.wait_for(|revision| *revision > 0)).await.is_ok()
    }

    /// The workload as it is known now.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<Arc<Workload>> {
        self.mesh.load().as_ref()?.workload(uid).cloned()
    }
}

#[cfg(test)]
mod tests;
