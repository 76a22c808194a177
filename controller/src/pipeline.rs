//! From object events to clients: derive, apply, publish, report. The source of the objects (a folder of
//! files or the Kubernetes API) passes its events to a [`Pipeline`].

use std::collections::BTreeSet;
use std::sync::Arc;

use ambit_core::derive::{Condition, Derived, Kind, Object, ObjectEvent, ObjectKey, Settings, World};
use ambit_core::mesh::Touched;
use ambit_xds::server::Publisher;

use crate::shared::Shared;

/// The objects in force with the mesh derived from them, and the publisher.
#[derive(Debug)]
pub(crate) struct Pipeline {
    world: World,
    publisher: Publisher,
    pub(crate) shared: Arc<Shared>,
}

impl Pipeline {
    pub(crate) fn new(settings: Settings, publisher: Publisher, shared: Arc<Shared>) -> Self {
        Self { world: World::new(settings), publisher, shared }
    }

    /// Applies events without publishing. Returns what they touched, and the new conditions and statuses of
    /// objects.
    pub(crate) fn derive(&mut self, events: Vec<ObjectEvent>) -> Derived {
        let any_gateway = events.iter().any(is_of_gateway);
        let derived = self.world.apply(events);
        if any_gateway {
            self.shared.waypoints.store(Arc::new(self.world.waypoint_services()));
        }
        derived.conditions.iter().for_each(log_condition);
        derived
    }

    /// Waypoints that were programmed before this process.
    pub(crate) fn remember_programmed(&mut self, gateways: impl IntoIterator<Item = ObjectKey>) {
        self.world.remember_programmed(gateways);
    }

    /// Waypoints that were programmed once.
    pub(crate) fn programmed(&self) -> BTreeSet<ObjectKey> {
        self.world.programmed()
    }

    /// Publishes everything, as the first state.
    pub(crate) fn publish_all(&self) {
        let mesh = self.world.mesh();
        let everything = Touched {
            workloads: mesh.workloads().map(|workload| workload.uid.clone()).collect(),
            services: mesh.services().map(|service| service.key.clone()).collect(),
            policies: mesh.policies().map(|policy| policy.key.clone()).collect(),
            routes: mesh.all_routes().map(|routes| routes.service().clone()).collect(),
            addresses: BTreeSet::new(),
        };
        self.publish(&everything);
    }

    /// Publishes what was touched.
    pub(crate) fn publish(&self, touched: &Touched) {
        // First the mesh that certificate requests are checked against: daemons request what is published.
        self.shared.mesh.store(Arc::new(self.world.mesh().clone()));
        self.publisher.publish(self.world.mesh(), touched);
        tracing::info!(
            workloads = touched.workloads.len(),
            services = touched.services.len(),
            policies = touched.policies.len(),
            routes = touched.routes.len(),
            "configuration published"
        );
    }

    /// The objects whose present version is not accepted.
    pub(crate) fn refused(&self) -> BTreeSet<ObjectKey> {
        let refused = self.world.conditions().filter(|condition| !condition.accepted);
        refused.map(|condition| condition.object.clone()).collect()
    }

    /// The conditions that have a message.
    pub(crate) fn messages(&self) -> Vec<Condition> {
        self.world.conditions().filter(|condition| !condition.message.is_empty()).cloned().collect()
    }
}

fn is_of_gateway(event: &ObjectEvent) -> bool {
    match event {
        ObjectEvent::Put(object) => matches!(**object, Object::Gateway(_)),
        ObjectEvent::Delete(key) => key.kind == Kind::Gateway,
    }
}

fn log_condition(condition: &Condition) {
    let Condition { object, field, accepted, message } = condition;
    let field = field.as_deref().unwrap_or_default();
    match (message.is_empty(), accepted) {
        (true, _) => {}
        (false, true) => tracing::info!(%object, field, message, "object noted"),
        (false, false) => tracing::error!(%object, field, error = message, "object rejected"),
    }
}
