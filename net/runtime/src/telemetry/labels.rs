//! The labels of Istio's TCP metrics, and the counters that carry them.
//!
//! Values are names from the mesh (workloads' managers, services, identities), never addresses or pods, so the
//! number of series is that of pairs of workloads that talk. Counters are looked up once per connection.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use ambit_core::model::{Identity, Service, Workload};
use metrics::{Counter, Label, SharedString};
use parking_lot::RwLock;

use super::connection::{Direction, End, Facts, Flag};

/// Label sets that are told apart; connections beyond share one set with nothing known. A mesh that names its
/// workloads after every run must not fill the daemon's memory.
const MAX_LABEL_SETS: usize = 10_000;

pub(super) const OPENED: &str = "istio_tcp_connections_opened_total";
pub(super) const CLOSED: &str = "istio_tcp_connections_closed_total";
pub(super) const FAILED: &str = "istio_tcp_connections_failed_total";
pub(super) const SENT: &str = "istio_tcp_sent_bytes_total";
pub(super) const RECEIVED: &str = "istio_tcp_received_bytes_total";
pub(super) const UNTOLD: &str = "ambit_metrics_label_sets_untold_total";

/// One label set. Cheap to make and compare: everything is shared with the mesh's own values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    direction: Direction,
    mutual_tls: bool,
    flag: Flag,
    source: Party,
    destination: Party,
    service: Option<ServiceLabels>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Party {
    workload: Option<WorkloadLabels>,
    principal: Option<Identity>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct WorkloadLabels {
    workload: Arc<str>,
    namespace: Arc<str>,
    canonical_service: Arc<str>,
    canonical_revision: Arc<str>,
    cluster: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ServiceLabels {
    host: Arc<str>,
    name: Arc<str>,
    namespace: Arc<str>,
}

impl Labels {
    pub(super) fn new(facts: &Facts, flag: Flag) -> Self {
        Self {
            direction: facts.direction,
            mutual_tls: facts.mutual_tls,
            flag,
            source: Party::new(&facts.source, facts.mutual_tls),
            destination: Party::new(&facts.destination, facts.mutual_tls),
            service: facts.service.as_deref().map(ServiceLabels::new),
        }
    }

    /// What is left when there are too many label sets.
    fn untold(&self) -> Self {
        Self {
            direction: self.direction,
            mutual_tls: self.mutual_tls,
            flag: self.flag,
            source: Party::default(),
            destination: Party::default(),
            service: None,
        }
    }

    fn to_metric_labels(&self) -> Vec<Label> {
        let reporter = match self.direction {
            Direction::Outbound => "source",
            Direction::Inbound => "destination",
        };
        let security = if self.mutual_tls { "mutual_tls" } else { "unknown" };
        let mut labels = vec![
            Label::from_static_parts("reporter", reporter),
            Label::from_static_parts("request_protocol", "tcp"),
            Label::from_static_parts("response_flags", self.flag.as_str()),
            Label::from_static_parts("connection_security_policy", security),
        ];
        self.source.push(&mut labels, &SOURCE);
        self.destination.push(&mut labels, &DESTINATION);
        let service = self.service.as_ref();
        labels.push(label("destination_service", service.map(|service| &service.host)));
        labels.push(label("destination_service_name", service.map(|service| &service.name)));
        labels.push(label("destination_service_namespace", service.map(|service| &service.namespace)));
        labels
    }
}

/// The names of one party's labels.
struct Names {
    workload: &'static str,
    namespace: &'static str,
    canonical_service: &'static str,
    canonical_revision: &'static str,
    app: &'static str,
    version: &'static str,
    cluster: &'static str,
    principal: &'static str,
}

const SOURCE: Names = Names {
    workload: "source_workload",
    namespace: "source_workload_namespace",
    canonical_service: "source_canonical_service",
    canonical_revision: "source_canonical_revision",
    app: "source_app",
    version: "source_version",
    cluster: "source_cluster",
    principal: "source_principal",
};

const DESTINATION: Names = Names {
    workload: "destination_workload",
    namespace: "destination_workload_namespace",
    canonical_service: "destination_canonical_service",
    canonical_revision: "destination_canonical_revision",
    app: "destination_app",
    version: "destination_version",
    cluster: "destination_cluster",
    principal: "destination_principal",
};

impl Party {
    fn new(end: &End, mutual_tls: bool) -> Self {
        Self {
            workload: end.workload.as_deref().map(WorkloadLabels::new),
            principal: end.identity.clone().filter(|_| mutual_tls),
        }
    }

    fn push(&self, labels: &mut Vec<Label>, names: &Names) {
        let known = self.workload.as_ref();
        labels.push(label(names.workload, known.map(|w| &w.workload)));
        labels.push(label(names.namespace, known.map(|w| &w.namespace)));
        labels.push(label(names.canonical_service, known.map(|w| &w.canonical_service)));
        labels.push(label(names.canonical_revision, known.map(|w| &w.canonical_revision)));
        labels.push(label(names.app, known.map(|w| &w.canonical_service)));
        labels.push(label(names.version, known.map(|w| &w.canonical_revision)));
        labels.push(label(names.cluster, known.map(|w| &w.cluster)));
        let principal = self.principal.as_ref().map(|identity| Arc::from(identity.to_string()));
        labels.push(label(names.principal, principal.as_ref()));
    }
}

impl WorkloadLabels {
    fn new(workload: &Workload) -> Self {
        Self {
            workload: workload.workload_name.clone(),
            namespace: workload.namespace.clone(),
            canonical_service: workload.canonical_name.clone(),
            canonical_revision: workload.canonical_revision.clone(),
            cluster: workload.cluster.clone(),
        }
    }
}

impl ServiceLabels {
    fn new(service: &Service) -> Self {
        Self {
            host: service.key.hostname.clone(),
            name: service.name.clone(),
            namespace: service.key.namespace.clone(),
        }
    }
}

/// A label; `unknown` when there is no value, as Istio writes it.
fn label(name: &'static str, value: Option<&Arc<str>>) -> Label {
    let value = value
        .filter(|value| !value.is_empty())
        .map_or(SharedString::const_str("unknown"), |value| SharedString::from(value.clone()));
    Label::new(name, value)
}

/// The counters of one label set, each registered when it first counts, so that no series of zeros is served.
#[derive(Debug)]
pub(super) struct Series {
    labels: Labels,
    opened: OnceLock<Counter>,
    closed: OnceLock<Counter>,
    failed: OnceLock<Counter>,
    sent: OnceLock<Counter>,
    received: OnceLock<Counter>,
}

impl Series {
    fn new(labels: Labels) -> Self {
        Self {
            labels,
            opened: OnceLock::new(),
            closed: OnceLock::new(),
            failed: OnceLock::new(),
            sent: OnceLock::new(),
            received: OnceLock::new(),
        }
    }

    pub(super) fn opened(&self) {
        self.counter(&self.opened, OPENED).increment(1);
    }

    pub(super) fn closed(&self) {
        self.counter(&self.closed, CLOSED).increment(1);
    }

    pub(super) fn failed(&self) {
        self.counter(&self.failed, FAILED).increment(1);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.counter(&self.sent, SENT).increment(bytes);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.counter(&self.received, RECEIVED).increment(bytes);
    }

    fn counter<'a>(&self, place: &'a OnceLock<Counter>, name: &'static str) -> &'a Counter {
        place.get_or_init(|| metrics::counter!(name, self.labels.to_metric_labels()))
    }
}

/// All label sets seen.
#[derive(Debug)]
pub(super) struct AllSeries {
    known: RwLock<HashMap<Labels, Arc<Series>>>,
    limit: usize,
}

impl AllSeries {
    pub(super) fn new() -> Self {
        Self::with_limit(MAX_LABEL_SETS)
    }

    fn with_limit(limit: usize) -> Self {
        Self { known: RwLock::default(), limit }
    }

    pub(super) fn of(&self, labels: Labels) -> Arc<Series> {
        if let Some(series) = self.known.read().get(&labels) {
            return series.clone();
        }
        let mut known = self.known.write();
        let labels = if known.len() < self.limit || known.contains_key(&labels) {
            labels
        } else {
            metrics::counter!(UNTOLD).increment(1);
            labels.untold()
        };
        known.entry(labels).or_insert_with_key(|labels| Arc::new(Series::new(labels.clone()))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::tests::facts;

    #[test]
    fn label_sets_beyond_the_limit_share_one() {
        let all = AllSeries::with_limit(1);
        let first = all.of(Labels::new(&facts("limit-a", "limit-b"), Flag::None));
        let second = all.of(Labels::new(&facts("limit-c", "limit-d"), Flag::None));
        let third = all.of(Labels::new(&facts("limit-e", "limit-f"), Flag::None));
        assert!(!Arc::ptr_eq(&first, &second), "the first keeps its own");
        assert!(Arc::ptr_eq(&second, &third), "the others share");
        let again = all.of(Labels::new(&facts("limit-a", "limit-b"), Flag::None));
        assert!(Arc::ptr_eq(&first, &again), "a known set stays told apart");
        assert!(
            second
                .labels
                .to_metric_labels()
                .iter()
                .any(|l| l.key() == "source_workload" && l.value() == "unknown")
        );
    }
}
