//! The labels of Istio's TCP metrics, and the counters that carry them.
//!
//! Values are names from the mesh (workloads' managers, services, identities), never addresses or pods, so the
//! number of series is that of pairs of workloads that talk. Counters are looked up once per connection, and forgotten
//! when they were not used for long and no connection that is open holds them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use ambit_core::model::{Identity, Service, Workload};
use parking_lot::RwLock;

use super::connection::{Bytes, Direction, End, Facts, Flag};
use super::exposition::{Exposition, Family, Value, label_text};
use super::instruments::Counter;

/// Label sets that are told apart; connections beyond share one set with nothing known. A mesh that names its
/// workloads after every run must not fill the daemon's memory.
const MAX_LABEL_SETS: usize = 10_000;

/// How long a label set is shown after it was last used, unless said otherwise.
const IDLE: Duration = Duration::from_hours(1);
/// Between two looks for label sets to forget because there are too many.
const SWEEP_PAUSE: Duration = Duration::from_secs(10);

/// The families, in the order of [`Series`]' counts.
const FAMILIES: [Family; 5] = [
    Family::counter("istio_tcp_connections_opened_total", "TCP connections opened."),
    Family::counter("istio_tcp_connections_closed_total", "TCP connections closed."),
    Family::counter("istio_tcp_connections_failed_total", "TCP connections refused or not made."),
    Family::counter("istio_tcp_sent_bytes_total", "Bytes sent by servers, in response."),
    Family::counter("istio_tcp_received_bytes_total", "Bytes received from clients, in request."),
];
const LABEL_SETS: Family =
    Family::gauge("ambit_metrics_label_sets", "Label sets of connections that are shown.");

static UNTOLD: Counter = Counter::new(
    "ambit_metrics_label_sets_untold_total",
    "Connections counted without names because there were too many label sets.",
);

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
            source: Party::new(&facts.source, facts.proven()),
            destination: Party::new(&facts.destination, facts.proven()),
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

    /// As they stand between the braces.
    fn text(&self) -> String {
        let reporter = match self.direction {
            Direction::Outbound => "source",
            Direction::Inbound => "destination",
        };
        let security = if self.mutual_tls { "mutual_tls" } else { "unknown" };
        let mut labels = vec![
            ("reporter", reporter),
            ("request_protocol", "tcp"),
            ("response_flags", self.flag.as_str()),
            ("connection_security_policy", security),
        ];
        let principals = [&self.source, &self.destination].map(Party::principal);
        self.source.push(&mut labels, &SOURCE, principals[0].as_deref());
        self.destination.push(&mut labels, &DESTINATION, principals[1].as_deref());
        let service = self.service.as_ref();
        labels.push(("destination_service", known(service.map(|service| &*service.host))));
        labels.push(("destination_service_name", known(service.map(|service| &*service.name))));
        labels.push(("destination_service_namespace", known(service.map(|service| &*service.namespace))));
        label_text(&labels)
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
    fn new(end: &End, proven: bool) -> Self {
        Self {
            workload: end.workload.as_deref().map(WorkloadLabels::new),
            principal: end.identity.clone().filter(|_| proven),
        }
    }

    fn principal(&self) -> Option<String> {
        self.principal.as_ref().map(ToString::to_string)
    }

    fn push<'a>(
        &'a self,
        labels: &mut Vec<(&'static str, &'a str)>,
        names: &Names,
        principal: Option<&'a str>,
    ) {
        let workload = self.workload.as_ref();
        let mut push =
            |name, value: Option<&'a Arc<str>>| labels.push((name, known(value.map(|value| &**value))));
        push(names.workload, workload.map(|w| &w.workload));
        push(names.namespace, workload.map(|w| &w.namespace));
        push(names.canonical_service, workload.map(|w| &w.canonical_service));
        push(names.canonical_revision, workload.map(|w| &w.canonical_revision));
        push(names.app, workload.map(|w| &w.canonical_service));
        push(names.version, workload.map(|w| &w.canonical_revision));
        push(names.cluster, workload.map(|w| &w.cluster));
        labels.push((names.principal, known(principal)));
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

/// The value; `unknown` when there is none, as Istio writes it.
fn known(value: Option<&str>) -> &str {
    value.filter(|value| !value.is_empty()).unwrap_or("unknown")
}

/// The counts of one label set. What has not counted yet is not shown: no series of zeros.
#[derive(Debug)]
pub(super) struct Series {
    /// As they stand between the braces.
    labels: Box<str>,
    counts: [AtomicU64; FAMILIES.len()],
    /// In milliseconds since [`EPOCH`].
    used: AtomicU64,
}

/// When this process began to count time.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Series {
    fn new(labels: &Labels) -> Self {
        Self { labels: labels.text().into(), counts: Default::default(), used: AtomicU64::new(now()) }
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
        self.counts[family].fetch_add(count, Ordering::Relaxed);
        self.used();
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

/// All label sets that are shown.
#[derive(Debug)]
pub(super) struct AllSeries {
    known: RwLock<HashMap<Labels, Arc<Series>>>,
    limit: usize,
    /// Milliseconds after which a label set that nobody uses is forgotten.
    idle: AtomicU64,
    /// When label sets are next looked through because there are too many.
    next_sweep: AtomicU64,
}

impl AllSeries {
    pub(super) fn new() -> Self {
        Self::with_limit(MAX_LABEL_SETS)
    }

    fn with_limit(limit: usize) -> Self {
        Self {
            known: RwLock::default(),
            limit,
            idle: AtomicU64::new(milliseconds(IDLE)),
            next_sweep: AtomicU64::new(0),
        }
    }

    /// Changes how long label sets are shown that nobody uses.
    pub(super) fn forget_after(&self, idle: Duration) {
        self.idle.store(milliseconds(idle), Ordering::Relaxed);
    }

    /// The counts of a label set. It is not forgotten while the result is held.
    pub(super) fn of(&self, labels: Labels) -> Arc<Series> {
        if let Some(series) = self.known.read().get(&labels) {
            series.used();
            return series.clone();
        }
        let mut known = self.known.write();
        if known.len() >= self.limit && now() >= self.next_sweep.load(Ordering::Relaxed) {
            self.sweep(&mut known);
        }
        let labels = if known.len() < self.limit || known.contains_key(&labels) {
            labels
        } else {
            UNTOLD.count();
            labels.untold()
        };
        known.entry(labels).or_insert_with_key(|labels| Arc::new(Series::new(labels))).clone()
    }

    /// Forgets what nobody holds and nobody used for long, and gives it back. Whoever takes a label set does so under the same lock, so
    /// none is forgotten between being taken and being counted in.
    fn sweep(&self, known: &mut HashMap<Labels, Arc<Series>>) -> Vec<Arc<Series>> {
        let now = now();
        self.next_sweep.store(now + milliseconds(SWEEP_PAUSE), Ordering::Relaxed);
        let idle = self.idle.load(Ordering::Relaxed);
        let unused = |series: &Arc<Series>| {
            let since = now.saturating_sub(series.used.load(Ordering::Relaxed));
            Arc::strong_count(series) == 1 && since >= idle
        };
        let forgotten = known.extract_if(|_, series| unused(series)).map(|(_, series)| series).collect();
        // The room of many that left at once is given back.
        if known.capacity() > 4 * known.len() {
            known.shrink_to_fit();
        }
        forgotten
    }

    /// Writes all families, after forgetting what is no longer used.
    pub(super) fn show(&self, all: &mut Exposition) {
        let series: Vec<_> = {
            let mut known = self.known.write();
            self.sweep(&mut known);
            known.values().cloned().collect()
        };
        for (place, family) in FAMILIES.iter().enumerate() {
            let mut samples = all.family(family);
            for series in &series {
                let count = series.counts[place].load(Ordering::Relaxed);
                if count > 0 {
                    samples.written("", &series.labels, Value::Whole(count));
                }
            }
        }
        all.single(&LABEL_SETS, series.len());
        UNTOLD.show(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::tests::facts;

    fn labels(source: &str) -> Labels {
        Labels::new(&facts(source, "cart"), Flag::None)
    }

    fn shown(all: &AllSeries) -> String {
        let mut text = Exposition::default();
        all.show(&mut text);
        text.into_text()
    }

    #[test]
    fn label_sets_beyond_the_limit_share_one() {
        let all = AllSeries::with_limit(1);
        let first = all.of(labels("limit-a"));
        let second = all.of(labels("limit-c"));
        let third = all.of(labels("limit-e"));
        assert!(!Arc::ptr_eq(&first, &second), "the first keeps its own");
        assert!(Arc::ptr_eq(&second, &third), "the others share");
        let again = all.of(labels("limit-a"));
        assert!(Arc::ptr_eq(&first, &again), "a known set stays told apart");
        assert!(second.labels.contains(r#"source_workload="unknown""#), "{}", second.labels);
    }

    #[test]
    fn thousands_that_come_and_go_leave_nothing() {
        let all = AllSeries::new();
        let held = all.of(labels("churn-held"));
        held.opened();
        for number in 0..5000 {
            all.of(labels(&format!("churn-{number}"))).closed();
        }
        let text = shown(&all);
        assert_eq!(
            text.matches("istio_tcp_connections_closed_total{").count(),
            5000,
            "all are shown for an hour"
        );
        all.forget_after(Duration::ZERO);
        let text = shown(&all);
        assert!(text.contains(r#"source_workload="churn-held""#), "what is open stays: {text}");
        assert!(text.contains("\nambit_metrics_label_sets 1\n"), "{text}");
        assert!(all.known.read().capacity() < 100, "{}", all.known.read().capacity());
        drop(held);
        let text = shown(&all);
        assert!(!text.contains("churn"), "{text}");
    }

    #[test]
    fn churn_beyond_the_limit_makes_room_for_new_names() {
        let all = AllSeries::with_limit(100);
        all.forget_after(Duration::ZERO);
        let last = (0..1000).fold(None, |_, number| {
            // As if the pause had passed.
            all.next_sweep.store(0, Ordering::Relaxed);
            Some(all.of(labels(&format!("room-{number}"))))
        });
        assert!(all.known.read().len() <= 100, "{}", all.known.read().len());
        assert!(last.is_some_and(|series| series.labels.contains(r#"source_workload="room-999""#)));
    }

    #[test]
    fn a_label_set_that_is_forgotten_while_it_is_taken_loses_no_count() {
        let all = AllSeries::new();
        all.forget_after(Duration::ZERO);
        let mut seen = 0;
        std::thread::scope(|scope| {
            let counting = scope.spawn(|| {
                for _ in 0..20_000 {
                    all.of(labels("raced")).opened();
                }
            });
            // Each scrape that finds nobody holding it takes it away; what it showed is what was counted in it.
            while !counting.is_finished() {
                seen += taken(&all);
            }
        });
        seen += taken(&all);
        assert_eq!(seen, 20_000);
    }

    /// Takes away what nobody holds, and gives what was counted in it.
    fn taken(all: &AllSeries) -> u64 {
        let forgotten = all.sweep(&mut all.known.write());
        forgotten.iter().map(|series| series.counts[0].load(Ordering::Acquire)).sum()
    }
}
