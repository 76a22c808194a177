//! Which endpoints are kept out of the choice because connections to them fail.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{ServiceKey, WorkloadUid};

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
