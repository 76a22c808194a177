use super::*;
use crate::testing::{mesh, put, uid, workload};

#[tokio::test(start_paused = true)]
async fn wait_ends_when_the_workload_is_known_or_at_the_timeout() {
    let state = Arc::new(MeshState::new());
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
async fn synced_within_sees_earlier_and_later_synchronization() {
    let state = MeshState::new();
    assert!(!state.synced_within(CONFIGURATION_TIMEOUT).await);
    state.publish(mesh([]));
    assert!(state.synced_within(CONFIGURATION_TIMEOUT).await);
}
