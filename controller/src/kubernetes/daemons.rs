//! The pods of the node daemons, as the API shows them: which may authenticate, for which node, and which
//! nodes are ready.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ambit_core::derive::{Kind, Object, ObjectKey, Phase};
use parking_lot::RwLock;
use tokio::sync::Notify;

use super::item::Seen;

/// How long a pod whose token is valid may take to appear in the watch.
const WATCH_LAG: Duration = Duration::from_secs(2);

/// The pod of one daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Daemon {
    pub(crate) uid: String,
    /// Empty until it is scheduled.
    pub(crate) node: String,
    pub(crate) finished: bool,
    pub(crate) ready: bool,
    /// When the pod was created, as the API writes it.
    pub(crate) created: String,
}

/// The pods of all daemons, by name.
#[derive(Debug)]
pub(crate) struct Daemons {
    namespace: String,
    service_account: String,
    pods: RwLock<BTreeMap<String, Daemon>>,
    changed: Notify,
}

impl Daemons {
    pub(crate) fn new(namespace: &str, service_account: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pods: RwLock::default(),
            changed: Notify::new(),
        }
    }

    /// Takes in an object, if it is a daemon's pod.
    pub(crate) fn put(&self, seen: &Seen) {
        let Ok(object) = &seen.read else { return };
        let Object::Pod(pod) = &**object else { return };
        if pod.metadata.namespace != self.namespace || pod.service_account != self.service_account {
            return;
        }
        let daemon = Daemon {
            uid: seen.uid.clone(),
            node: pod.node.clone(),
            finished: matches!(pod.phase, Phase::Succeeded | Phase::Failed),
            ready: pod.ready,
            created: seen.created.clone(),
        };
        self.pods.write().insert(pod.metadata.name.clone(), daemon);
        self.changed.notify_waiters();
    }

    /// Removes a deleted object, if it is a daemon's pod.
    pub(crate) fn remove(&self, key: &ObjectKey) {
        if key.kind == Kind::Pod && key.namespace == self.namespace {
            self.pods.write().remove(&key.name);
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Daemon> {
        self.pods.read().get(name).cloned()
    }

    /// The pod, waiting a moment until it is known and scheduled: its token may arrive before its watch
    /// event.
    pub(crate) async fn wait_for(&self, name: &str) -> Option<Daemon> {
        let appears = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if let Some(daemon) = self.get(name).filter(|daemon| !daemon.node.is_empty()) {
                    return daemon;
                }
                changed.await;
            }
        };
        tokio::time::timeout(WATCH_LAG, appears).await.ok()
    }

    /// Those of some nodes, with when they were created, whose daemon is ready. A daemon that is older than
    /// its node ran on an earlier node of that name: its pod may look ready until the API server deletes
    /// it.
    pub(crate) fn ready_nodes(&self, nodes: &BTreeMap<String, String>) -> BTreeSet<String> {
        let pods = self.pods.read();
        let ready = pods.values().filter(|pod| pod.ready && !pod.finished);
        let ready = ready.filter(|pod| nodes.get(&pod.node).is_some_and(|created| *created <= pod.created));
        ready.map(|pod| pod.node.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::item::{self, Item};

    #[test]
    fn a_node_is_ready_by_a_daemon_that_began_on_it() {
        const NODE: &str = "2026-01-01T10:00:00Z";
        // When the daemon's pod was created, whether it is ready, and whether the node is.
        let rows = [
            ("ready", "2026-01-01T10:00:03Z", "True", true),
            ("in the same second", NODE, "True", true),
            ("not ready", "2026-01-01T10:00:03Z", "False", false),
            ("of an earlier node of that name", "2026-01-01T09:59:59Z", "True", false),
        ];
        for (name, created, ready, expected) in rows {
            let daemons = Daemons::new("system", "ztunnel");
            let pod = serde_json::json!({
                "metadata": {"name": "z", "namespace": "system", "uid": "u", "creationTimestamp": created},
                "spec": {"nodeName": "one", "serviceAccountName": "ztunnel", "containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
            });
            let item: Item<item::Pod> = serde_json::from_value(pod).unwrap();
            daemons.put(&item.seen);
            let nodes = BTreeMap::from([("one".to_owned(), NODE.to_owned())]);
            assert_eq!(!daemons.ready_nodes(&nodes).is_empty(), expected, "{name}");
        }
    }
}
