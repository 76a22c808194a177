//! The labels of Istio's TCP metrics, and the counters that carry them.
//!
//! Values are names from the mesh (workloads' managers, services, identities), never addresses or pods, so
//! the number of series is that of pairs of workloads that talk. Counters are looked up once per connection,
//! and forgotten when they were not used for long and no connection that is open holds them
//! (`docs/decisions/065`).

use std::array;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

use ambit_core::model::{Identity, Service, Workload};
use ambit_daemon_kit::telemetry::exposition::{Exposition, Family, label};
use ambit_daemon_kit::telemetry::instruments::Counter;
use foldhash::quality::RandomState;
use metrics::Label;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use metrics_util::MetricKindMask;
use parking_lot::{Mutex, RwLock};

use super::connection::{Bytes, ConnectionInfo, Direction, Flag, Party};

/// Maximum number of label sets; further connections share one with all names `unknown`. Workloads with a new
/// name for each run (Jobs) must not fill the daemon's memory.
const MAX_LABEL_SETS: usize = 10_000;

/// The families, in the order of [`Series`]' counters.
const FAMILIES: [Family; 5] = [
    Family::counter("istio_tcp_connections_opened_total", "TCP connections opened."),
    Family::counter("istio_tcp_connections_closed_total", "TCP connections closed."),
    Family::counter("istio_tcp_connections_failed_total", "TCP connections refused or not made."),
    Family::counter("istio_tcp_sent_bytes_total", "Bytes sent by servers, in response."),
    Family::counter("istio_tcp_received_bytes_total", "Bytes received from clients, in request."),
];
const LABEL_SETS: Family =
    Family::gauge("ambit_metrics_label_sets", "Label sets of connections that are shown.");

static OVERFLOW: Counter = Counter::new(
    "ambit_metrics_label_sets_overflow_total",
    "Connections counted without names because there were too many label sets.",
);

/// One label set. Cheap to make and compare: everything is shared with the mesh's own values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    direction: Direction,
    mutual_tls: bool,
    flag: Flag,
    source: PartyLabels,
    destination: PartyLabels,
    service: Option<ServiceLabels>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct PartyLabels {
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
    pub(super) fn new(connection: &ConnectionInfo, flag: Flag) -> Self {
        Self {
            direction: connection.direction,
            mutual_tls: connection.mutual_tls,
            flag,
            source: PartyLabels::new(&connection.source, connection.proven()),
            destination: PartyLabels::new(&connection.destination, connection.proven()),
            service: connection.service.as_deref().map(ServiceLabels::new),
        }
    }

    /// What is left when there are too many label sets.
    fn overflow(&self) -> Self {
        Self {
            direction: self.direction,
            mutual_tls: self.mutual_tls,
            flag: self.flag,
            source: PartyLabels::default(),
            destination: PartyLabels::default(),
            service: None,
        }
    }

    /// As the recorder takes them.
    fn values(&self) -> Vec<Label> {
        let reporter = match self.direction {
            Direction::Outbound => "source",
            Direction::Inbound => "destination",
            Direction::Through => "waypoint",
        };
        let security = if self.mutual_tls { "mutual_tls" } else { UNKNOWN };
        let mut labels = vec![
            label("reporter", reporter),
            label("request_protocol", "tcp"),
            label("response_flags", self.flag.as_str()),
            label("connection_security_policy", security),
        ];
        self.source.push(&mut labels, &SOURCE);
        self.destination.push(&mut labels, &DESTINATION);
        let service = self.service.as_ref();
        labels.push(known("destination_service", service.map(|service| &service.host)));
        labels.push(known("destination_service_name", service.map(|service| &service.name)));
        labels.push(known("destination_service_namespace", service.map(|service| &service.namespace)));
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

impl PartyLabels {
    fn new(party: &Party, proven: bool) -> Self {
        Self {
            workload: party.workload.as_deref().map(WorkloadLabels::new),
            principal: party.identity.clone().filter(|_| proven),
        }
    }

    fn push(&self, labels: &mut Vec<Label>, names: &Names) {
        let workload = self.workload.as_ref();
        let principal = self.principal.as_ref().map(|principal| Arc::from(principal.to_string()));
        labels.extend([
            known(names.workload, workload.map(|w| &w.workload)),
            known(names.namespace, workload.map(|w| &w.namespace)),
            known(names.canonical_service, workload.map(|w| &w.canonical_service)),
            known(names.canonical_revision, workload.map(|w| &w.canonical_revision)),
            known(names.app, workload.map(|w| &w.canonical_service)),
            known(names.version, workload.map(|w| &w.canonical_revision)),
            known(names.cluster, workload.map(|w| &w.cluster)),
            known(names.principal, principal.as_ref()),
        ]);
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

/// The value of labels that are not known, as Istio writes it.
const UNKNOWN: &str = "unknown";

fn known(name: &'static str, value: Option<&Arc<str>>) -> Label {
    match value.filter(|value| !value.is_empty()) {
        Some(value) => label(name, value.clone()),
        None => label(name, UNKNOWN),
    }
}

/// The counters of one label set. Counters that have not counted yet are not shown: no series of zeros.
#[derive(Debug)]
pub(super) struct Series {
    recorder: Arc<PrometheusRecorder>,
    labels: Vec<Label>,
    counters: [OnceLock<metrics::Counter>; FAMILIES.len()],
    /// In milliseconds since [`EPOCH`].
    used: AtomicU64,
}

/// The origin of [`Series::used`].
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Series {
    fn new(recorder: Arc<PrometheusRecorder>, labels: &Labels) -> Self {
        let counters = array::from_fn(|_| OnceLock::new());
        Self { recorder, labels: labels.values(), counters, used: AtomicU64::new(now()) }
    }

    pub(super) fn opened(&self) {
        self.add(0, 1);
    }

    pub(super) fn closed(&self) {
        self.add(1, 1);
    }

    pub(super) fn failed(&self) {
        self.add(2, 1);
    }

    /// Bytes carried. Istio's names are those of the server's side: it sends the response.
    pub(super) fn carried(&self, bytes: Bytes) {
        self.add(3, bytes.from_server);
        self.add(4, bytes.from_client);
    }

    fn add(&self, family: usize, count: u64) {
        if count > 0 {
            self.counter(family).increment(count);
        }
        self.used();
    }

    fn counter(&self, family: usize) -> &metrics::Counter {
        self.counters[family].get_or_init(|| FAMILIES[family].counter_in(&self.recorder, self.labels.clone()))
    }

    /// Marks its counters as used for the recorder, which watches for writes.
    fn touch(&self) {
        for counter in self.counters.iter().filter_map(OnceLock::get) {
            counter.increment(0);
        }
    }

    /// Which of the families have counted.
    fn shown(&self) -> Shown {
        array::from_fn(|family| self.counters[family].get().is_some())
    }

    fn used(&self) {
        self.used.store(now(), Ordering::Relaxed);
    }
}

fn now() -> u64 {
    milliseconds(EPOCH.elapsed())
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whether each of the families has counted.
type Shown = [bool; FAMILIES.len()];

/// All label sets that are shown.
///
/// The recorder drops a counter that was not written for a while, even while it is held, and what is counted
/// in it later is lost. So each scrape first writes to all counters in use, and moves those that no
/// connection holds and none used for half of the idle time from [`Sets::known`] to [`Sets::leaving`]; the
/// recorder waits for the other half.
#[derive(Debug)]
pub(super) struct AllSeries {
    recorder: Arc<PrometheusRecorder>,
    sets: RwLock<Sets>,
    /// Held while the recorder may forget counters. Taken before `sets`.
    scraping: Mutex<()>,
    limit: usize,
    /// Half of the idle time: how long a label set is unused before it is taken out, and then how long the
    /// recorder waits.
    half: Duration,
}

#[derive(Debug, Default)]
struct Sets {
    /// Their counters may be counted in.
    known: HashMap<Labels, Arc<Series>, RandomState>,
    /// Taken out, and perhaps not forgotten by the recorder yet.
    leaving: HashMap<Labels, Leaving>,
}

#[derive(Debug)]
struct Leaving {
    shown: Shown,
    /// The end of the scrape that took it out: the recorder waits from then on at the latest.
    since: Option<Instant>,
}

impl Sets {
    fn len(&self) -> usize {
        self.known.len() + self.leaving.len()
    }
}

impl AllSeries {
    /// Forgets label sets that were not used for the time `idle`.
    pub(super) fn new(idle: Duration) -> Self {
        Self::with_limit(MAX_LABEL_SETS, idle)
    }

    fn with_limit(limit: usize, idle: Duration) -> Self {
        let half = idle / 2;
        let recorder =
            PrometheusBuilder::new().idle_timeout(MetricKindMask::COUNTER, Some(half)).build_recorder();
        for family in &FAMILIES {
            family.describe(&recorder);
        }
        Self {
            recorder: Arc::new(recorder),
            sets: RwLock::default(),
            scraping: Mutex::default(),
            limit,
            half,
        }
    }

    /// The counters of a label set. They are not forgotten while the result is held.
    pub(super) fn of(&self, labels: Labels) -> Arc<Series> {
        let overflow = labels.overflow();
        self.within(labels, self.limit).unwrap_or_else(|| {
            OVERFLOW.count();
            self.within(overflow, usize::MAX).expect("there is room without a limit")
        })
    }

    /// The counters of a label set; none if it is new and there are so many already.
    fn within(&self, labels: Labels, limit: usize) -> Option<Arc<Series>> {
        let mut quiet = None;
        loop {
            let sets = self.sets.read();
            if let Some(series) = sets.known.get(&labels) {
                series.used();
                return Some(series.clone());
            }
            let leaving = sets.leaving.contains_key(&labels);
            drop(sets);
            // A scrape that is under way may be about to forget its counters. Rare: it was not used for long.
            if leaving && quiet.is_none() {
                quiet = Some(self.scraping.lock());
            }
            let mut sets = self.sets.write();
            if sets.known.contains_key(&labels) || (sets.leaving.contains_key(&labels) && quiet.is_none()) {
                continue;
            }
            return self.enter(&mut sets, labels, limit);
        }
    }

    fn enter(&self, sets: &mut Sets, labels: Labels, limit: usize) -> Option<Arc<Series>> {
        let left = sets.leaving.remove(&labels);
        if left.is_none() && sets.len() >= limit {
            return None;
        }
        let series = Arc::new(Series::new(self.recorder.clone(), &labels));
        // The recorder must know that they are in use before it next looks.
        let shown = left.map(|left| left.shown).unwrap_or_default();
        for (family, _) in shown.into_iter().enumerate().filter(|(_, shown)| *shown) {
            series.counter(family).increment(0);
        }
        sets.known.insert(labels, series.clone());
        Some(series)
    }

    /// Takes out what is not held and was not used for long, and keeps the rest in the recorder. Label sets
    /// are looked up under the same lock, so none is taken out between its look-up and its first count.
    fn sweep(&self) {
        let (now, half) = (now(), milliseconds(self.half));
        let Sets { known, leaving } = &mut *self.sets.write();
        let unused = |series: &Arc<Series>| {
            let since = now.saturating_sub(series.used.load(Ordering::Relaxed));
            Arc::strong_count(series) == 1 && since >= half
        };
        let out = known.extract_if(|_, series| unused(series));
        leaving.extend(out.map(|(labels, series)| (labels, Leaving { shown: series.shown(), since: None })));
        for series in known.values() {
            series.touch();
        }
        // The room of many that left at once is given back.
        if known.capacity() > 4 * known.len() {
            known.shrink_to_fit();
        }
    }

    /// Drops what the recorder has forgotten in a scrape that began at `began`.
    fn forget(&self, began: Instant) {
        let leaving = &mut self.sets.write().leaving;
        // The recorder reads another clock.
        let sure = self.half + self.half / 8;
        leaving.retain(|_, left| {
            let since = *left.since.get_or_insert_with(Instant::now);
            began.saturating_duration_since(since) <= sure
        });
        if leaving.capacity() > 4 * leaving.len() {
            leaving.shrink_to_fit();
        }
    }

    /// Writes all families, without what is no longer used.
    pub(super) fn show(&self, all: &mut Exposition) {
        {
            let _no_set_returns = self.scraping.lock();
            let began = Instant::now();
            self.sweep();
            all.add(&self.recorder);
            self.forget(began);
        }
        for family in &FAMILIES {
            all.announce(family);
        }
        all.single(&LABEL_SETS, self.sets.read().len());
        OVERFLOW.show(all);
    }
}

#[cfg(test)]
mod tests;
