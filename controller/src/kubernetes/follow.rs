//! What watches say → the pipeline: what arrives together is applied together.
//!
//! Way in: [`Follower::run`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_core::derive::{Kind, ObjectEvent};
use ambit_core::mesh::Touched;
use ambit_daemon_kit::admin;
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;

use super::daemons::Daemons;
use super::inventory::Inventory;
use super::item::Seen;
use super::status::Statuses;
use super::taint::NOT_READY;
use super::watch::Heard;
use crate::pipeline::Pipeline;
use crate::shared::Status;

/// At least this long between two publications; what comes meanwhile waits for the second. A change that
/// comes alone does not wait.
const WINDOW: Duration = Duration::from_millis(20);
/// Taken in at once: more only makes the first wait for the last.
const BATCH: usize = 4_096;
/// Where a full first state is not there yet, it is said what is missing this often.
const SAY: Duration = Duration::from_secs(10);

/// Between the watches and the clients.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) inventory: Inventory,
    pub(crate) pipeline: Pipeline,
    pub(crate) daemons: Arc<Daemons>,
    pub(crate) statuses: Arc<Statuses>,
    /// The nodes whose startup taint is to go.
    pub(crate) startable: watch::Sender<BTreeSet<String>>,
    /// The nodes that have it.
    pub(crate) tainted: BTreeSet<String>,
    pub(crate) ready: admin::Condition,
}

impl Follower {
    /// Follows until the watches end.
    pub(crate) async fn run(mut self, mut heard: Receiver<Heard>) {
        let mut published: Option<Instant> = None;
        let mut batch = Vec::new();
        loop {
            let received = tokio::time::timeout(SAY, heard.recv_many(&mut batch, BATCH)).await;
            match received {
                Ok(0) => return,
                Ok(_) => {}
                Err(_) => {
                    if published.is_none() {
                        self.say_missing();
                    }
                    continue;
                }
            }
            if let Some(due) = published.map(|last| last + WINDOW)
                && due > Instant::now()
            {
                tokio::time::sleep_until(due.into()).await;
                while batch.len() < BATCH
                    && let Ok(more) = heard.try_recv()
                {
                    batch.push(more);
                }
            }
            // Deriving takes its time where much has changed, and others wait on this thread.
            let done =
                tokio::task::block_in_place(|| self.take(std::mem::take(&mut batch), published.is_none()));
            if done {
                published = Some(Instant::now());
            }
        }
    }

    /// Takes a batch in. Whether something was published.
    fn take(&mut self, batch: Vec<Heard>, first: bool) -> bool {
        let now = Instant::now();
        let mut troubled = false;
        for heard in batch {
            match &heard {
                Heard::Listed(seen) | Heard::Put(seen) => self.note(seen),
                Heard::Trouble(kind, reason) => {
                    troubled = true;
                    self.say_trouble(&kind.to_string(), reason.as_deref());
                }
                _ => {}
            }
            self.inventory.hear(heard, now);
        }
        let Some(events) = self.inventory.take() else {
            if troubled {
                self.report();
            }
            return false;
        };
        for event in &events {
            if let ObjectEvent::Delete(key) = event {
                self.daemons.remove(key);
                if key.kind == Kind::Node {
                    self.tainted.remove(&key.name);
                }
                self.statuses.gone(key);
            }
        }
        let counted = !events.is_empty();
        let (touched, conditions) =
            if counted { self.pipeline.derive(events) } else { (Touched::default(), Vec::new()) };
        let said = !conditions.is_empty();
        self.statuses.derived(conditions);
        self.settle();
        if first {
            self.pipeline.publish_all();
            self.ready.met();
        } else if !touched.is_empty() {
            self.pipeline.publish(&touched);
        }
        if first || counted || troubled || said || self.inventory.problems_changed() {
            self.report();
        }
        first || !touched.is_empty()
    }

    /// Takes in what concerns the controller and not the mesh.
    fn note(&mut self, seen: &Seen) {
        self.daemons.put(seen);
        self.statuses.seen(seen);
        if seen.key.kind == Kind::Node {
            if seen.taints.iter().any(|taint| taint == NOT_READY) {
                self.tainted.insert(seen.key.name.clone());
            } else {
                self.tainted.remove(&seen.key.name);
            }
        }
    }

    /// Tells those who write to the API what there is to write.
    fn settle(&self) {
        self.statuses.settled();
        let ready = self.daemons.ready_nodes().into_iter().filter(|node| self.tainted.contains(node));
        let ready: BTreeSet<String> = ready.collect();
        self.startable.send_if_modified(|known| std::mem::replace(known, ready.clone()) != ready);
    }

    /// What there is to say, for `/debug` and the metrics.
    fn report(&self) {
        let old = self.pipeline.shared.status.load();
        let problems = self.inventory.problems();
        for problem in problems.difference(&old.problems) {
            let (object, field) = (problem.object.as_deref(), problem.field.as_deref());
            let earlier_version_in_force = problem.earlier_version_in_force;
            tracing::error!(
                object,
                field,
                error = problem.message,
                earlier_version_in_force,
                "object rejected"
            );
        }
        let status = Status {
            objects: self.inventory.counts(),
            files: 0,
            unreachable: self.inventory.troubles(),
            problems,
            conditions: self.pipeline.said(),
        };
        self.pipeline.shared.status.store(Arc::new(status));
    }

    fn say_missing(&self) {
        let missing = self.inventory.missing().join(", ");
        tracing::warn!(missing, "not listed yet: nothing is served");
        self.ready.unmet(format!("not listed yet: {missing}"));
    }

    fn say_trouble(&self, kind: &str, reason: Option<&str>) {
        let known = self.inventory.troubles();
        match (reason, known.get(kind)) {
            (Some(reason), None) => tracing::warn!(kind, reason, "watch failed: what is known stays"),
            (None, Some(_)) => tracing::info!(kind, "watch works again"),
            _ => {}
        }
    }
}
