//! Which endpoints are kept out of the choice because connections to them fail: [`Health`], fed with how
//! connections went, gives the [`Ejected`].
//!
//! An endpoint that fails several times in a row is ejected for a while. Then it is on trial: one more
//! failure ejects it for twice as long, one success sets it free. Time is whatever the caller counts, from
//! any beginning.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::{ServiceKey, WorkloadUid};

/// When endpoints are ejected, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many failures in a row eject; from 1.
    pub consecutive_failures: u32,
    /// How long the first ejection lasts; each one after it lasts twice as long as the one before.
    pub first_ejection: Duration,
    /// How long one lasts at most. Who has been in good standing for as long is a first offender again.
    pub longest_ejection: Duration,
    /// Which share of the endpoints of a service's port may be ejected at once.
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

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    pub service: ServiceKey,
    pub port: u16,
}

/// What a report changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// The endpoint is ejected for so long.
    Ejected(Duration),
    /// It may serve again.
    Returned,
}

/// How endpoints are doing. Only those that failed lately take up memory.
#[derive(Clone, Debug)]
pub struct Health {
    settings: Settings,
    records: BTreeMap<ServicePort, BTreeMap<WorkloadUid, Record>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    /// In a row, since the last success or return.
    failures: u32,
    /// How often it was ejected, forgotten after a while.
    ejections: u32,
    ejected: bool,
    /// An ejection has ended and nothing was heard since.
    on_trial: bool,
    /// When the ejection ends, or when the last thing happened.
    at: Duration,
}

impl Health {
    pub fn new(settings: Settings) -> Self {
        Self { settings, records: BTreeMap::new() }
    }

    /// Whether there is nothing to say of anybody: then a success changes nothing either.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// A connection to the endpoint was made.
    pub fn succeeded(&mut self, port: &ServicePort, endpoint: &WorkloadUid, now: Duration) -> Effect {
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

    /// A connection to the endpoint could not be made. `all`: the endpoints that the port has, this one among
    /// them.
    pub fn failed<'a>(
        &mut self,
        port: &ServicePort,
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
            // Nobody else was left, so it served all the same.
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

    /// Ends the ejections whose time is over and forgets what is long past. Who may serve again is given.
    pub fn advance(&mut self, now: Duration) -> Vec<(ServicePort, WorkloadUid)> {
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

    /// Those that are ejected now.
    pub fn ejected(&self) -> Ejected {
        self.ejections()
            .map(|(port, endpoint, _)| (port.service.clone(), port.port, endpoint.clone()))
            .collect()
    }

    /// Those that are ejected now, each with the time at which that ends.
    pub fn ejections(&self) -> impl Iterator<Item = (&ServicePort, &WorkloadUid, Duration)> {
        let records =
            self.records.iter().flat_map(|(port, records)| records.iter().map(move |(e, r)| (port, e, r)));
        records
            .filter(|(_, _, record)| record.ejected)
            .map(|(port, endpoint, record)| (port, endpoint, record.at))
    }

    fn forget(&mut self, port: &ServicePort, endpoint: &WorkloadUid) {
        if let Some(records) = self.records.get_mut(port) {
            records.remove(endpoint);
            if records.is_empty() {
                self.records.remove(port);
            }
        }
    }
}

/// The endpoints that are ejected now, each for one port of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ejected(BTreeMap<ServiceKey, BTreeMap<WorkloadUid, BTreeSet<u16>>>);

impl Ejected {
    /// Nobody.
    pub const NONE: Self = Self(BTreeMap::new());

    /// Whether an endpoint is among them, for this port of the service.
    pub fn contains(&self, service: &ServiceKey, port: u16, endpoint: &WorkloadUid) -> bool {
        let ports = || self.0.get(service)?.get(endpoint);
        ports().is_some_and(|ports| ports.contains(&port))
    }

    /// Whether the service has any.
    pub fn concerns(&self, service: &ServiceKey) -> bool {
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
