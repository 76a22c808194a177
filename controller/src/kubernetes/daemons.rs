//! The pods of the node daemons, as the API shows them: which may authenticate, for which node, and which
//! nodes are ready.

use std::collections::BTreeMap;
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

    /// The nodes whose daemon is ready.
    pub(crate) fn ready_nodes(&self) -> Vec<String> {
        let pods = self.pods.read();
        pods.values().filter(|pod| pod.ready && !pod.finished).map(|pod| pod.node.clone()).collect()
    }
}
