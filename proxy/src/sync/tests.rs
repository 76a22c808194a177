use std::sync::Mutex;

use ambit_xds::client::Update;

use super::*;
use crate::testing::{put, uid, workload};

/// What a follower was called with, in order.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<String>>>, Arc<MeshState>);

impl Calls {
    fn note(&self, call: &str, change: Option<&MeshChange<'_>>) {
        let change = change.map(|change| {
            let published = self.1.mesh().is_some_and(|mesh| mesh.workload(&uid("web")).is_some());
            let touched = change.touched.map(|touched| touched.workloads.len());
            format!(" before={} touched={touched:?} published={published}", change.before.is_some())
        });
        self.0.lock().expect("no panic").push(format!("{call}{}", change.unwrap_or_default()));
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

impl Follower for Calls {
    type Scope = &'static str;

    fn void(&self, change: &MeshChange<'_>) -> Self::Scope {
        self.note("void", Some(change));
        "scope"
    }

    fn follow(&self, change: &MeshChange<'_>) {
        self.note("follow", Some(change));
    }

    fn recheck(&self, scope: Self::Scope) {
        self.note(&format!("recheck {scope}"), None);
    }
}

#[test]
fn followers_called_in_order_after_publication() {
    let state = Arc::new(MeshState::new());
    let calls = Calls(Arc::default(), state.clone());
    let mut sync = MeshSync::new(state.clone(), Arc::default(), calls.clone());
    let update = |changes, synced| Update { changes, synced };

    sync.apply(update(vec![put(workload("web", &["10.0.0.1"]))], false));
    assert!(calls.taken().is_empty() && state.mesh().is_none(), "not complete yet");
    sync.apply(update(Vec::new(), true));
    let expected = |before: bool, touched: &str| {
        let change = format!("before={before} touched={touched} published=true");
        [format!("void {change}"), format!("follow {change}"), "recheck scope".to_owned()]
    };
    assert_eq!(calls.taken(), expected(false, "None"));
    assert!(state.is_enforced(&state.mesh().expect("published")));

    sync.apply(update(vec![put(workload("cart", &["10.0.1.1"]))], true));
    assert_eq!(calls.taken(), expected(true, "Some(1)"));
    sync.apply(update(Vec::new(), true));
    assert!(calls.taken().is_empty(), "nothing changed");
}
