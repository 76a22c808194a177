//! From the watches to the pipeline, in batches.
//!
//! Entry point: [`Follower::run`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_core::derive::{Derived, Kind, ObjectEvent};
use ambit_daemon_kit::admin;
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;

use super::daemons::Daemons;
use super::inventory::Inventory;
use super::item::Seen;
use super::provision::Wanted;
use super::status::Statuses;
use super::taint::NOT_READY;
use super::watch::WatchEvent;
use crate::pipeline::Pipeline;
use crate::shared::Status;

/// The shortest time between two publications; a change after a quiet period is published at once.
const WINDOW: Duration = Duration::from_millis(20);
/// The largest batch: a larger one only delays its first change.
const BATCH: usize = 4_096;
/// How often missing lists are logged until the first complete state.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The state between the watches and the pipeline.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) inventory: Inventory,
    pub(crate) pipeline: Pipeline,
    pub(crate) daemons: Arc<Daemons>,
    pub(crate) statuses: Arc<Statuses>,
    /// The Gateways that want a waypoint.
    pub(crate) wanted: Wanted,
    /// The nodes whose startup taint is to be removed.
    pub(crate) untaintable: watch::Sender<BTreeSet<String>>,
    /// The nodes with the startup taint, and when they were created.
    pub(crate) tainted: BTreeMap<String, String>,
    pub(crate) ready: admin::Condition,
}

impl Follower {
    /// Follows until the watches end.
    pub(crate) async fn run(mut self, mut events: Receiver<WatchEvent>) {
        let mut published: Option<Instant> = None;
        let mut batch = Vec::new();
        loop {
            let received = tokio::time::timeout(REPORT_INTERVAL, events.recv_many(&mut batch, BATCH)).await;
            match received {
                Ok(0) => return,
                Ok(_) => {}
                Err(_) => {
                    if published.is_none() {
                        self.report_missing();
                    }
                    continue;
                }
            }
            if let Some(due) = published.map(|last| last + WINDOW)
                && due > Instant::now()
            {
                tokio::time::sleep_until(due.into()).await;
                while batch.len() < BATCH
                    && let Ok(more) = events.try_recv()
                {
                    batch.push(more);
                }
            }
            // Derivation is slow after large changes, and other tasks wait for this thread.
            let done =
                tokio::task::block_in_place(|| self.take(std::mem::take(&mut batch), published.is_none()));
            if done {
                published = Some(Instant::now());
            }
        }
    }

    /// Applies a batch; whether something was published.
    fn take(&mut self, batch: Vec<WatchEvent>, first: bool) -> bool {
        let now = Instant::now();
        let mut watch_changed = false;
        for event in batch {
            match &event {
                WatchEvent::Listed(seen) | WatchEvent::Put(seen) => self.note(seen),
                WatchEvent::Error(kind, reason) => {
                    watch_changed = true;
                    self.log_watch_error(&kind.to_string(), reason.as_deref());
                }
                _ => {}
            }
            self.inventory.handle(event, now);
        }
        let Some(events) = self.inventory.take() else {
            if watch_changed {
                self.report();
                self.ready.unmet(self.waiting());
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
                self.wanted.gone(key);
            }
        }
        let changed = !events.is_empty();
        let Derived { touched, conditions, standings, .. } =
            if changed { self.pipeline.derive(events) } else { Derived::default() };
        let any_condition = !conditions.is_empty();
        self.statuses.derived(conditions);
        self.statuses.stand(standings);
        self.settle();
        if first {
            self.pipeline.publish_all();
            self.ready.met();
        } else if !touched.is_empty() {
            self.pipeline.publish(&touched);
        }
        if first || changed || watch_changed || any_condition || self.inventory.problems_changed() {
            self.report();
        }
        first || !touched.is_empty()
    }

    /// Records what concerns the controller and not the mesh.
    fn note(&mut self, seen: &Seen) {
        self.daemons.put(seen);
        self.statuses.seen(seen);
        self.wanted.seen(seen);
        if seen.key.kind == Kind::Node {
            if seen.taints.iter().any(|taint| taint == NOT_READY) {
                self.tainted.insert(seen.key.name.clone(), seen.created.clone());
            } else {
                self.tainted.remove(&seen.key.name);
            }
        }
    }

    /// Wakes the tasks that write to the API.
    fn settle(&self) {
        self.statuses.settled();
        let ready = self.daemons.ready_nodes(&self.tainted);
        self.untaintable.send_if_modified(|known| std::mem::replace(known, ready.clone()) != ready);
    }

    /// Updates what `/debug` and the metrics show.
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
            unreachable: self.inventory.watch_errors(),
            problems,
            conditions: self.pipeline.messages(),
        };
        self.pipeline.shared.status.store(Arc::new(status));
    }

    fn report_missing(&self) {
        let waiting = self.waiting();
        tracing::warn!(reason = waiting, "nothing is served yet");
        self.ready.unmet(waiting);
    }

    fn waiting(&self) -> String {
        format!("waiting for the first lists: {}", self.inventory.missing().join(", "))
    }

    fn log_watch_error(&self, kind: &str, reason: Option<&str>) {
        let known = self.inventory.watch_errors();
        match (reason, known.get(kind)) {
            (Some(reason), None) => {
                tracing::warn!(kind, error = reason, "failed to watch; known objects stay");
            }
            (None, Some(_)) => tracing::info!(kind, "watch restored"),
            _ => {}
        }
    }
}
