//! Gateway API's objects in the [`World`]: routes of services, waypoints that become ready, and standings.

use std::collections::BTreeSet;

use super::World;
use crate::derive::condition::Condition;
use crate::derive::dirty::Dirty;
use crate::derive::object::{Kind, ObjectKey};
use crate::derive::report::Report;
use crate::derive::standing::Standing;
use crate::derive::steps::{Replaced, Steps, replace};
use crate::derive::{routes, service, waypoint};
use crate::mesh::{Change, Touched};

/// What a status says, and what is logged.
type Stands = (Standing, Vec<Condition>);

impl World {
    /// Gateways that have a ready endpoint and had none before.
    pub(super) fn newly_programmed(&self) -> Vec<ObjectKey> {
        let waiting =
            self.store.waypoints().filter(|gateway| !self.store.was_programmed(&waypoint::key(gateway)));
        let ready = waiting.filter(|gateway| waypoint::is_ready(gateway, &self.mesh, &self.settings));
        ready.map(waypoint::key).collect()
    }

    /// The standings of Gateway API's objects, and their conditions. Those of waypoints follow their
    /// endpoints.
    pub(super) fn stand(
        &mut self,
        dirty: [&Dirty; 2],
        touched: &Touched,
        report: &mut Report,
    ) -> Vec<(ObjectKey, Standing)> {
        let mut found: Vec<(ObjectKey, Option<Stands>)> = Vec::new();
        let (store, settings, mesh) = (&self.store, &self.settings, &self.mesh);
        let compiled = |key: &ObjectKey| self.compiled.get(key);
        let [first, second] = dirty;
        let mut claims = routes::AllClaims::new(store, &compiled);
        for key in first.routes().union(second.routes()) {
            let route = store.route(key);
            found.push((key.clone(), route.map(|it| routes::standing(key, it, settings, &mut claims))));
        }
        for key in first.gateways().union(second.gateways()) {
            if waypoint::waypoint_gateway(store, &key.namespace, &key.name).is_none() {
                found.push((key.clone(), None));
            }
        }
        let endpoints_may_differ = !touched.workloads.is_empty() || !touched.services.is_empty();
        if endpoints_may_differ || !first.gateways().is_empty() || !second.gateways().is_empty() {
            let standings = store.waypoints().map(|gateway| {
                (waypoint::key(gateway), Some(waypoint::standing(gateway, store, mesh, settings)))
            });
            found.extend(standings);
        }
        for key in first.services().union(second.services()) {
            if let Some(service) = store.service(key) {
                let unbound = waypoint::service_unbound(store, key, service);
                report.set(key.clone(), unbound.into_iter().collect());
            }
        }
        let mut changed = Vec::new();
        for (key, standing) in found {
            let Some((standing, conditions)) = standing else {
                self.standings.remove(&key);
                report.set(key, Vec::new());
                continue;
            };
            report.set(key.clone(), conditions);
            if self.standings.get(&key) != Some(&standing) {
                self.standings.insert(key.clone(), standing.clone());
                changed.push((key, standing));
            }
        }
        changed
    }

    pub(super) fn derive_routes(&mut self, dirty: &Dirty, steps: &mut Steps) {
        for key in dirty.routes() {
            match self.store.route(key) {
                Some(object) => {
                    let compiled = routes::compile(object, &self.store, &self.settings);
                    // An equal one stays, so that what is attached stays the same.
                    if self.compiled.get(key) != Some(&compiled) {
                        self.compiled.insert(key.clone(), compiled);
                    }
                }
                None => drop(self.compiled.remove(key)),
            }
        }
        // A reference of a route may have become good or bad by another object.
        let parents = dirty.routes().iter().filter_map(|key| self.store.route(key)).flat_map(routes::parents);
        let services: BTreeSet<_> = dirty.routed().iter().cloned().chain(parents).collect();
        for (namespace, name) in services {
            let key = service::key(&namespace, &name, &self.settings);
            let object = ObjectKey { kind: Kind::Service, namespace, name };
            let compiled = |key: &ObjectKey| self.compiled.get(key);
            let new = self.store.service(&object).filter(|service| !service.external_name);
            let new = new.and_then(|service| routes::attached(&key, service, &self.store, &compiled));
            match replace(&mut self.routes, key.clone(), new) {
                Some(Replaced::Put(routes)) => steps.put_routes.push(Change::PutRoutes(routes)),
                Some(Replaced::Removed) => steps.removed_routes.push(Change::RemoveRoutes(key)),
                None => {}
            }
        }
    }
}
