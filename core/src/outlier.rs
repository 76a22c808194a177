//! Outlier detection: endpoints to which connections fail are ejected from load balancing. A [`Detector`] is
//! given the outcome of each connection and gives the endpoints that are [`Ejected`].
//!
//! An endpoint that fails several times in a row is ejected for a time. After it the endpoint is on trial:
//! one more failure ejects it for twice as long, one success ends the trial. Times are durations since any
//! fixed instant of the caller's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::{ServiceKey, WorkloadUid};

/// When endpoints are ejected, and for how long. The fields are those of Envoy's outlier detection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The number of failures in a row that ejects; at least 1.
    pub consecutive_failures: u32,
    /// The first ejection's duration; each further one lasts twice as long as the one before.
    pub first_ejection: Duration,
    /// The longest ejection's duration. After as long without a failure, the next ejection is a first one.
    pub longest_ejection: Duration,
    /// The share of a service port's endpoints that may be ejected at the same time.
    pub most_ejected_percent: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            consecutive_failures: 3,
            first_ejection: Duration::from_secs(10),
            longest_ejection: Duration::from_mins(5),
            most_ejected_percent: 75,
        }
    }
}

/// The name of a service's port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePortKey {
    /// The service.
    pub service: ServiceKey,
    /// The service's port, not the target port.
    pub port: u16,
}

/// The effect of a connection's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing changed.
    None,
    /// The endpoint is ejected for this long.
    Ejected(Duration),
    /// The endpoint's ejection is over.
    Returned,
}

/// The outcomes of connections by endpoint. Only endpoints that have failed lately are held.
#[derive(Clone, Debug)]
pub struct Detector {
    settings: Settings,
    records: BTreeMap<ServicePortKey, BTreeMap<WorkloadUid, Record>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    /// In a row, since the last success or ejection.
    failures: u32,
    /// The number of ejections, until it has not failed for `longest_ejection`.
    ejections: u32,
    ejected: bool,
    /// An ejection has ended and no connection has been made since.
    on_trial: bool,
    /// When the ejection ends, or the time of the last outcome.
    at: Duration,
}

impl Detector {
    /// No endpoint has failed.
    pub fn new(settings: Settings) -> Self {
        Self { settings, records: BTreeMap::new() }
    }

    /// Whether no endpoint is held: then a success has no effect.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// A connection to the endpoint was established.
    pub fn succeeded(&mut self, port: &ServicePortKey, endpoint: &WorkloadUid, now: Duration) -> Effect {
        let Some(record) = self.records.get_mut(port).and_then(|records| records.get_mut(endpoint)) else {
            return Effect::None;
        };
        let effect = if record.ejected { Effect::Returned } else { Effect::None };
        *record = Record { ejections: record.ejections, at: now, ..Record::default() };
        if record.ejections == 0 {
            self.forget(port, endpoint);
        }
        effect
    }

    /// A connection to the endpoint failed. `all` are the endpoints of the port, including this one.
    pub fn failed<'a>(
        &mut self,
        port: &ServicePortKey,
        endpoint: &WorkloadUid,
        all: impl IntoIterator<Item = &'a WorkloadUid>,
        now: Duration,
    ) -> Effect {
        let records = self.records.entry(port.clone()).or_default();
        let known: Vec<bool> =
            all.into_iter().map(|uid| records.get(uid).is_some_and(|record| record.ejected)).collect();
        let (total, ejected) = (known.len(), known.into_iter().filter(|ejected| *ejected).count());
        let has_room = (ejected + 1) * 100 <= total * usize::from(self.settings.most_ejected_percent);

        let record = records.entry(endpoint.clone()).or_default();
        if record.ejected {
            // An ejected endpoint serves where no other is left.
            return Effect::None;
        }
        record.failures = record.failures.saturating_add(1);
        record.at = now;
        let enough = record.on_trial || record.failures >= self.settings.consecutive_failures;
        if !(enough && has_room) {
            return Effect::None;
        }
        let doubled = 2_u32.saturating_pow(record.ejections);
        let time = self.settings.first_ejection.saturating_mul(doubled).min(self.settings.longest_ejection);
        let ejections = record.ejections.saturating_add(1);
        *record = Record { failures: 0, ejections, ejected: true, on_trial: false, at: now + time };
        Effect::Ejected(time)
    }

    /// Ends the ejections whose time is over and forgets old outcomes. Returns the endpoints whose ejection
    /// ended.
    pub fn advance(&mut self, now: Duration) -> Vec<(ServicePortKey, WorkloadUid)> {
        let mut returned = Vec::new();
        let memory = self.settings.longest_ejection;
        for (port, records) in &mut self.records {
            records.retain(|endpoint, record| {
                if record.ejected && record.at <= now {
                    (record.ejected, record.on_trial) = (false, true);
                    returned.push((port.clone(), endpoint.clone()));
                }
                record.ejected || now.saturating_sub(record.at) <= memory
            });
        }
        self.records.retain(|_, records| !records.is_empty());
        returned
    }

    /// The endpoints that are ejected now.
    pub fn ejected(&self) -> Ejected {
        self.ejections()
            .map(|(port, endpoint, _)| (port.service.clone(), port.port, endpoint.clone()))
            .collect()
    }

    /// The endpoints that are ejected now, each with the time at which the ejection ends.
    pub fn ejections(&self) -> impl Iterator<Item = (&ServicePortKey, &WorkloadUid, Duration)> {
        let records =
            self.records.iter().flat_map(|(port, records)| records.iter().map(move |(e, r)| (port, e, r)));
        records
            .filter(|(_, _, record)| record.ejected)
            .map(|(port, endpoint, record)| (port, endpoint, record.at))
    }

    fn forget(&mut self, port: &ServicePortKey, endpoint: &WorkloadUid) {
        if let Some(records) = self.records.get_mut(port) {
            records.remove(endpoint);
            if records.is_empty() {
                self.records.remove(port);
            }
        }
    }
}

/// The ejected endpoints, each for one port of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ejected(BTreeMap<ServiceKey, BTreeMap<WorkloadUid, BTreeSet<u16>>>);

impl Ejected {
    /// No endpoint.
    pub const NONE: Self = Self(BTreeMap::new());

    /// Whether the endpoint is ejected for this port of the service.
    pub fn contains(&self, service: &ServiceKey, port: u16, endpoint: &WorkloadUid) -> bool {
        let ports = || self.0.get(service)?.get(endpoint);
        ports().is_some_and(|ports| ports.contains(&port))
    }

    /// Whether any of the service's endpoints is ejected.
    pub fn affects(&self, service: &ServiceKey) -> bool {
        self.0.contains_key(service)
    }
}

impl FromIterator<(ServiceKey, u16, WorkloadUid)> for Ejected {
    fn from_iter<I: IntoIterator<Item = (ServiceKey, u16, WorkloadUid)>>(endpoints: I) -> Self {
        let mut ejected = Self::NONE;
        for (service, port, endpoint) in endpoints {
            ejected.0.entry(service).or_default().entry(endpoint).or_default().insert(port);
        }
        ejected
    }
}
