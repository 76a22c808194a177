//! What is known of the mesh, as decisions see it: [`State::wait`] gives a snapshot that is fit to decide
//! with.
//!
//! Nothing is visible before the first full synchronization: a mesh without its policies would permit too
//! much.

use std::sync::Arc;
use std::time::Duration;

use ambit_core::mesh::Mesh;
use ambit_core::model::{Workload, WorkloadUid};
use arc_swap::ArcSwapOption;
use tokio::sync::watch;

/// How long a connection waits for what must be known to decide it: a pod may be quicker than its own
/// configuration. Then it is refused.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The newest mesh, for readers on every thread.
#[derive(Debug)]
pub(crate) struct State {
    mesh: ArcSwapOption<Mesh>,
    /// The newest mesh that the kernel follows too.
    enforced: ArcSwapOption<Mesh>,
    revision: watch::Sender<u64>,
}

impl State {
    pub(crate) fn new() -> Self {
        Self {
            mesh: ArcSwapOption::empty(),
            enforced: ArcSwapOption::empty(),
            revision: watch::Sender::new(0),
        }
    }

    /// The newest mesh; none before the first full synchronization.
    pub(crate) fn mesh(&self) -> Option<Arc<Mesh>> {
        self.mesh.load_full()
    }

    /// Makes a mesh the one that decisions see.
    pub(crate) fn publish(&self, mesh: Mesh) {
        self.mesh.store(Some(Arc::new(mesh)));
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Notes that what was published last is in force for new connections, also where the kernel decides;
    /// open ones are being looked at.
    pub(crate) fn enforced(&self) {
        self.enforced.store(self.mesh());
    }

    /// Whether a mesh is in force for new connections.
    pub(crate) fn is_enforced(&self, mesh: &Arc<Mesh>) -> bool {
        self.enforced.load().as_ref().is_some_and(|enforced| Arc::ptr_eq(enforced, mesh))
    }

    /// The newest mesh, once there is one and the workload is in it. After [`PATIENCE`] what there is then.
    pub(crate) async fn wait(&self, uid: &WorkloadUid) -> Option<Arc<Mesh>> {
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
                // The sender is ours: it cannot be gone.
                revision.changed().await.ok()?;
            }
        };
        match tokio::time::timeout(PATIENCE, known).await {
            Ok(mesh) => mesh,
            Err(_) => self.mesh(),
        }
    }

    /// Waits for the first full synchronization; false if it did not come in time.
    pub(crate) async fn synced_within(&self, time: Duration) -> bool {
        let mut revision = self.revision.subscribe();
        tokio::time::timeout(time, revision.wait_for(|revision| *revision > 0)).await.is_ok()
    }

    /// The workload as it is known now.
    pub(crate) fn workload(&self, uid: &WorkloadUid) -> Option<Arc<Workload>> {
        self.mesh.load().as_ref()?.workload(uid).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{mesh, put, uid, workload};

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_workload_and_not_for_ever() {
        let state = Arc::new(State::new());
        assert!(state.wait(&uid("web")).await.is_none(), "never synchronized");
        state.publish(mesh([]));
        let unknown = state.wait(&uid("web")).await.expect("there is a mesh");
        assert!(unknown.workload(&uid("web")).is_none());

        let waiting = tokio::spawn({
            let state = state.clone();
            async move { state.wait(&uid("web")).await }
        });
        tokio::task::yield_now().await;
        state.publish(mesh([put(workload("other", &["10.0.0.9"]))]));
        tokio::task::yield_now().await;
        state.publish(mesh([put(workload("web", &["10.0.0.1"]))]));
        let known = waiting.await.unwrap().expect("there is a mesh");
        assert!(known.workload(&uid("web")).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn synchronization_is_noticed_before_and_after() {
        let state = State::new();
        assert!(!state.synced_within(PATIENCE).await);
        state.publish(mesh([]));
        assert!(state.synced_within(PATIENCE).await);
    }
}
