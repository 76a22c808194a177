//! How connections to services' endpoints went, and who is ejected for it: [`Endpoints`].

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

/// How often what is long past is forgotten.
const MEMORY_INTERVAL: Duration = Duration::from_mins(1);

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
pub(crate) struct Endpoint {
    pub(crate) port: ServicePortKey,
    pub(crate) workload: WorkloadUid,
}

/// Who is ejected now. Dialling tells it how connections went.
#[derive(Debug)]
pub(crate) struct Endpoints {
    began: Instant,
    /// None: nobody is ever ejected.
    health: Option<Mutex<Detector>>,
    /// Whether anybody failed lately: while nobody did, a success is no news, and takes no lock.
    troubled: AtomicBool,
    ejected: ArcSwap<Ejected>,
    ejections: AtomicU64,
    changed: watch::Sender<()>,
}

impl Endpoints {
    pub(crate) fn new(settings: Option<Settings>) -> Self {
        Self {
            began: Instant::now(),
            health: settings.map(|settings| Mutex::new(Detector::new(settings))),
            troubled: AtomicBool::new(false),
            ejected: ArcSwap::default(),
            ejections: AtomicU64::new(0),
            changed: watch::Sender::new(()),
        }
    }

    /// Those that are ejected now.
    pub(crate) fn ejected(&self) -> Arc<Ejected> {
        self.ejected.load_full()
    }

    /// Says when [`Self::ejected`] is another.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A connection to the endpoint was made.
    pub(crate) fn succeeded(&self, endpoint: &Endpoint) {
        let Some(health) = self.health.as_ref().filter(|_| self.troubled.load(Ordering::Relaxed)) else {
            return;
        };
        let mut health = health.lock();
        let effect = health.succeeded(&endpoint.port, &endpoint.workload, self.now());
        self.publish(&health, effect == Effect::Returned);
        drop(health);
        if effect == Effect::Returned {
            say_returned(&endpoint.port, &endpoint.workload);
        }
    }

    /// A connection to the endpoint could not be made.
    pub(crate) fn failed(&self, mesh: &Mesh, endpoint: &Endpoint) {
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
            tracing::warn!(%service, port, endpoint = %workload, seconds = time.as_secs_f64(), "endpoint ejected");
        }
    }

    /// Waits until another is ejected or the next ejection is over, and not for ever: the past is to be
    /// forgotten.
    pub(crate) async fn changed(&self, changes: &mut watch::Receiver<()>) {
        let next =
            self.health.as_ref().and_then(|health| health.lock().ejections().map(|(_, _, end)| end).min());
        let wait = next.map_or(MEMORY_INTERVAL, |end| end.saturating_sub(self.now()).min(MEMORY_INTERVAL));
        // The sender is ours: it cannot be gone.
        let _ = tokio::time::timeout(wait, changes.changed()).await;
    }

    /// Ends ejections whose time is over.
    pub(crate) fn advance(&self) {
        let Some(health) = self.health.as_ref().filter(|_| self.troubled.load(Ordering::Relaxed)) else {
            return;
        };
        let mut health = health.lock();
        let returned = health.advance(self.now());
        self.publish(&health, !returned.is_empty());
        drop(health);
        for (port, workload) in &returned {
            say_returned(port, workload);
        }
    }

    /// For `/config_dump`.
    pub(crate) fn view(&self) -> Value {
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
    pub(crate) fn show(&self, all: &mut Exposition) {
        let count = self.health.as_ref().map_or(0, |health| health.lock().ejections().count());
        all.single(&EJECTED, count as u64);
        all.single(&EJECTIONS, self.ejections.load(Ordering::Relaxed));
    }

    /// Makes known what the lock guards, while it is held.
    fn publish(&self, health: &Detector, changed: bool) {
        self.troubled.store(!health.is_empty(), Ordering::Relaxed);
        if changed {
            self.ejected.store(Arc::new(health.ejected()));
            self.changed.send_replace(());
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

fn say_returned(port: &ServicePortKey, workload: &WorkloadUid) {
    tracing::info!(service = %port.service, port = port.port, endpoint = %workload, "endpoint may serve again");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{endpoint_of, mesh, put, uid, workload};
    use ambit_core::testing::service_key;

    fn endpoint(name: &str) -> Endpoint {
        Endpoint { port: ServicePortKey { service: service_key("shop/cart"), port: 80 }, workload: uid(name) }
    }

    fn carts() -> Mesh {
        mesh([
            put(endpoint_of(workload("cart-1", &["10.0.1.1"]), "cart")),
            put(endpoint_of(workload("cart-2", &["10.0.1.2"]), "cart")),
        ])
    }

    #[test]
    fn failures_eject_and_a_success_brings_back() {
        let (endpoints, mesh, one) = (Endpoints::new(Some(Settings::default())), carts(), endpoint("cart-1"));
        let mut changes = endpoints.changes();
        let is_out = || endpoints.ejected().contains(&one.port.service, 80, &one.workload);
        for _ in 0..2 {
            endpoints.failed(&mesh, &one);
        }
        assert!(!is_out() && !changes.has_changed().unwrap());
        endpoints.failed(&mesh, &one);
        assert!(is_out() && changes.has_changed().unwrap());
        assert_eq!(endpoints.view()[0]["endpoint"], one.workload.to_string());
        changes.mark_unchanged();
        endpoints.succeeded(&one);
        assert!(!is_out() && changes.has_changed().unwrap());
        assert_eq!(endpoints.view(), json!([]));
    }

    #[test]
    fn ejections_end_by_themselves() {
        let short = Settings {
            first_ejection: Duration::ZERO,
            longest_ejection: Duration::ZERO,
            consecutive_failures: 1,
            ..Settings::default()
        };
        let (endpoints, mesh, one) = (Endpoints::new(Some(short)), carts(), endpoint("cart-1"));
        endpoints.failed(&mesh, &one);
        assert!(endpoints.ejected().affects(&one.port.service));
        endpoints.advance();
        assert!(!endpoints.ejected().affects(&one.port.service));
    }

    #[test]
    fn switched_off_nobody_is_ejected() {
        let (endpoints, mesh, one) = (Endpoints::new(None), carts(), endpoint("cart-1"));
        for _ in 0..10 {
            endpoints.failed(&mesh, &one);
        }
        assert_eq!(*endpoints.ejected(), Ejected::NONE);
    }
}
