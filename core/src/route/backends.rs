//! Who serves a request among weighted backends: [`Backends::pick`].

use std::sync::Arc;

use super::headers::HeaderChange;
use crate::model::ServiceKey;

/// The backends of a rule and the sum of their weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    all: Vec<Backend>,
    sum: u64,
}

/// One `backendRef`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Where it leads.
    pub target: Target,
    /// Its share among the rule's backends.
    pub weight: u32,
    /// Changes of the request's headers for this backend alone.
    pub request_headers: Vec<HeaderChange>,
    /// Changes of the response's headers for this backend alone.
    pub response_headers: Vec<HeaderChange>,
}

/// Where a backend leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A port of a service.
    Service {
        /// The service.
        service: ServiceKey,
        /// Its port.
        port: u16,
    },
    /// A reference that cannot be followed: it keeps its share, of requests as answers 500, of
    /// connections as refused ones.
    Invalid {
        /// Why, as in the route's status.
        reason: Arc<str>,
    },
}

impl Backends {
    /// The backends of one rule.
    pub fn new(all: Vec<Backend>) -> Self {
        let sum = all.iter().map(|it| u64::from(it.weight)).sum();
        Self { all, sum }
    }

    /// Chooses by weight; `random` is uniform over all of `u32`. None where no backend has a weight (500, as
    /// Gateway API asks).
    pub fn pick(&self, random: u32) -> Option<&Backend> {
        // A point in `0..sum`, each as likely as the other to within sum / 2^32.
        let mut point = (u128::from(random) * u128::from(self.sum)) >> 32;
        self.all.iter().find(|it| {
            let weight = u128::from(it.weight);
            let found = point < weight;
            point = point.saturating_sub(weight);
            found
        })
    }

    /// All of them, in the rule's order.
    pub fn all(&self) -> &[Backend] {
        &self.all
    }
}
