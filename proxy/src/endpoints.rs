//! Outlier detection: how connections to services' endpoints went, and which endpoints are ejected:
//! [`Endpoints`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ambit_core::mesh::Mesh;
use ambit_core::model::WorkloadUid;
use ambit_core::outlier::{Detector, Effect, Ejected, ServicePortKey, Settings};
use ambit_daemon_kit::telemetry::exposition::{Exposition, Family};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

/// How often old failures are forgotten.
const FORGET_INTERVAL: Duration = Duration::from_mins(1);

const EJECTED: Family = Family::gauge(
    "ambit_endpoints_ejected",
    "Endpoints kept out of the choice because connections to them fail.",
);
const EJECTIONS: Family = Family::counter(
    "ambit_endpoint_ejections_total",
    "How often an endpoint was kept out of the choice because connections to it failed.",
);

/// An endpoint as one port of one service has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The service and its port.
    pub port: ServicePortKey,
    /// The workload that serves it.
    pub workload: WorkloadUid,
}

/// The endpoints that are ejected now. Each attempt to connect is reported to it.
#[derive(Debug)]
pub struct Endpoints {
    began: Instant,
    /// None: ejection is switched off.
    health: Option<Mutex<Detector>>,
    /// Whether any endpoint failed lately: while none did, a success changes nothing and takes no lock.
    has_failures: AtomicBool,
    ejected: ArcSwap<Ejected>,
    ejections: AtomicU64,
    changed: watch::Sender<()>,
}

impl Endpoints {
    /// No endpoint has failed yet. Without settings none is ever ejected.
    pub fn new(settings: Option<Settings>) -> Self {
        Self {
            began: Instant::now(),
            health: settings.map(|settings| Mutex::new(Detector::new(settings))),
            has_failures: AtomicBool::new(false),
            ejected: ArcSwap::default(),
            ejections: AtomicU64::new(0),
            changed: watch::Sender::new(()),
        }
    }

    /// The endpoints that are ejected now.
    pub fn ejected(&self) -> Arc<Ejected> {
        self.ejected.load_full()
    }

    /// Notifies when [`Self::ejected`] has changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A connection to the endpoint was made.
    pub fn succeeded(&self, endpoint: &Endpoint) {
        let Some(health) = self.health.as_ref().filter(|_| self.has_failures.load(Ordering::Relaxed)) else {
            return;
        };
        let mut health = health.lock();
        let effect = health.succeeded(&endpoint.port, &endpoint.workload, self.now());
        self.publish(&health, effect == Effect::Returned);
        drop(health);
        if effect == Effect::Returned {
            log_returned(&endpoint.port, &endpoint.workload);
        }
    }

    /// A connection to the endpoint could not be made.
    pub fn failed(&self, mesh: &Mesh, endpoint: &Endpoint) {
        let Some(health) = &self.health else { return };
        let Endpoint { port, workload } = endpoint;
        let all = mesh
            .endpoints(&port.service)
            .filter(|w| w.services[&port.service].iter().any(|p| p.service_port == port.port));
        let mut health = health.lock();
        let effect = health.failed(port, workload, all.map(|workload| &workload.uid), self.now());
        let ejected = matches!(effect, Effect::Ejected(_));
        self.publish(&health, ejected);
        drop(health);
        if let Effect::Ejected(time) = effect {
            self.ejections.fetch_add(1, Ordering::Relaxed);
            let (service, port) = (&port.service, port.port);
            let seconds = time.as_secs_f64();
            tracing::warn!(%service, port, endpoint = %workload, seconds, "endpoint ejected");
        }
    }

    /// Waits until the set of ejected endpoints changes or the next ejection ends, at most until old failures
    /// are due to be forgotten.
    pub async fn changed(&self, changes: &mut watch::Receiver<()>) {
        let next =
            self.health.as_ref().and_then(|health| health.lock().ejections().map(|(_, _, end)| end).min());
        let wait = next.map_or(FORGET_INTERVAL, |end| end.saturating_sub(self.now()).min(FORGET_INTERVAL));
        // The sender lives in `self`, so this does not fail.
        let _ = tokio::time::timeout(wait, changes.changed()).await;
    }

    /// Ends ejections whose time is over.
    pub fn advance(&self) {
        let Some(health) = self.health.as_ref().filter(|_| self.has_failures.load(Ordering::Relaxed)) else {
            return;
        };
        let mut health = health.lock();
        let returned = health.advance(self.now());
        self.publish(&health, !returned.is_empty());
        drop(health);
        for (port, workload) in &returned {
            log_returned(port, workload);
        }
    }

    /// For `/config_dump`.
    pub fn view(&self) -> Value {
        let Some(health) = &self.health else { return json!([]) };
        let (health, now) = (health.lock(), self.now());
        let rows = health.ejections().map(|(port, workload, until)| {
            json!({
                "service": port.service.to_string(),
                "port": port.port,
                "endpoint": workload.to_string(),
                "seconds_left": until.saturating_sub(now).as_secs_f64(),
            })
        });
        rows.collect()
    }

    /// Adds its metrics.
    pub fn show(&self, all: &mut Exposition) {
        let count = self.health.as_ref().map_or(0, |health| health.lock().ejections().count());
        all.single(&EJECTED, count as u64);
        all.single(&EJECTIONS, self.ejections.load(Ordering::Relaxed));
    }

    /// Publishes what the lock guards, while it is held.
    fn publish(&self, health: &Detector, changed: bool) {
        self.has_failures.store(!health.is_empty(), Ordering::Relaxed);
        if changed {
            self.ejected.store(Arc::new(health.ejected()));
            self.changed.send_replace(());
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

fn log_returned(port: &ServicePortKey, workload: &WorkloadUid) {
    tracing::info!(service = %port.service, port = port.port, endpoint = %workload, "endpoint returned");
}

#[cfg(test)]
mod tests;
