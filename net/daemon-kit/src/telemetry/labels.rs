//! The labels of Istio's TCP metrics, and the counters that carry them.
//!
//! Values are names from the mesh (workloads' managers, services, identities), never addresses or pods, so
//! the number of series is that of pairs of workloads that talk. Counters are looked up once per connection,
//! and forgotten when they were not used for long and no connection that is open holds them (decision 065).

use std::array;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

use ambit_core::model::{Identity, Service, Workload};
use foldhash::quality::RandomState;
use metrics::Label;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use metrics_util::MetricKindMask;
use parking_lot::{Mutex, RwLock};

use super::connection::{Bytes, Direction, End, Facts, Flag};
use super::exposition::{Exposition, Family, label};
use super::instruments::Counter;

/// Label sets that are told apart; connections beyond share one set with nothing known. A mesh that names its
/// workloads after every run must not fill the daemon's memory.
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

    /// As the recorder takes them.
    fn values(&self) -> Vec<Label> {
        let reporter = match self.direction {
            Direction::Outbound => "source",
            Direction::Inbound => "destination",
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

impl Party {
    fn new(end: &End, proven: bool) -> Self {
        Self {
            workload: end.workload.as_deref().map(WorkloadLabels::new),
            principal: end.identity.clone().filter(|_| proven),
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

/// What stands for what is not known, as Istio writes it.
const UNKNOWN: &str = "unknown";

fn known(name: &'static str, value: Option<&Arc<str>>) -> Label {
    match value.filter(|value| !value.is_empty()) {
        Some(value) => label(name, value.clone()),
        None => label(name, UNKNOWN),
    }
}

/// The counters of one label set. What has not counted yet is not shown: no series of zeros.
#[derive(Debug)]
pub(super) struct Series {
    recorder: Arc<PrometheusRecorder>,
    labels: Vec<Label>,
    counters: [OnceLock<metrics::Counter>; FAMILIES.len()],
    /// In milliseconds since [`EPOCH`].
    used: AtomicU64,
}

/// When this process began to count time.
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

    /// Tells the recorder that its counters are in use: it looks at how often they were written.
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
/// The recorder forgets a counter that was not written for a while, also if somebody still holds it, and what
/// is counted in that one is lost. So each scrape first writes to all counters that may be counted in, and
/// takes those that nobody holds and nobody used for half of the time out of [`Sets::known`]; the other half
/// is the recorder's.
#[derive(Debug)]
pub(super) struct AllSeries {
    recorder: Arc<PrometheusRecorder>,
    sets: RwLock<Sets>,
    /// Held while the recorder may forget counters. Taken before `sets`.
    scraping: Mutex<()>,
    limit: usize,
    /// How long nobody may have used a label set before it is taken out; then, how long the recorder waits.
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
    /// Forgets label sets that nobody used for the time `idle`.
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
        let untold = labels.untold();
        self.within(labels, self.limit).unwrap_or_else(|| {
            UNTOLD.count();
            self.within(untold, usize::MAX).expect("there is room without a limit")
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

    /// Takes out what nobody holds and nobody used for long, and keeps the rest in the recorder. Whoever
    /// takes a label set does so under the same lock, so none is taken out between being taken and being
    /// counted in.
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
        // The recorder has a clock of its own.
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
            let _nobody_returns = self.scraping.lock();
            let began = Instant::now();
            self.sweep();
            all.add(&self.recorder);
            self.forget(began);
        }
        for family in &FAMILIES {
            all.announce(family);
        }
        all.single(&LABEL_SETS, self.sets.read().len());
        UNTOLD.show(all);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use super::*;
    use crate::telemetry::tests::facts;

    const HOUR: Duration = Duration::from_hours(1);

    fn labels(source: &str) -> Labels {
        Labels::new(&facts(source, "cart"), Flag::None)
    }

    fn shown(all: &AllSeries) -> String {
        let mut text = Exposition::default();
        all.show(&mut text);
        text.into_own_text()
    }

    /// How many connections of a source are shown as opened; none if it is not shown.
    fn opened(text: &str, source: &str) -> Option<u64> {
        let mine = format!("source_workload=\"{source}\"");
        let mut lines = text.lines().filter(|line| line.starts_with("istio_tcp_connections_opened_total{"));
        let line = lines.find(|line| line.contains(&mine))?;
        Some(line.rsplit_once(' ')?.1.parse().expect("a count"))
    }

    /// Scrapes until something is as it should be.
    fn until(all: &AllSeries, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let text = shown(all);
            if is_so(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "{what}: {text}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn label_sets_beyond_the_limit_share_one() {
        let all = AllSeries::with_limit(1, HOUR);
        let first = all.of(labels("limit-a"));
        let second = all.of(labels("limit-c"));
        let third = all.of(labels("limit-e"));
        assert!(!Arc::ptr_eq(&first, &second), "the first keeps its own");
        assert!(Arc::ptr_eq(&second, &third), "the others share");
        let again = all.of(labels("limit-a"));
        assert!(Arc::ptr_eq(&first, &again), "a known set stays told apart");
        second.opened();
        assert_eq!(opened(&shown(&all), "unknown"), Some(1));
    }

    #[test]
    fn what_is_held_keeps_its_count_and_what_is_not_vanishes() {
        let all = AllSeries::with_limit(MAX_LABEL_SETS, Duration::from_millis(20));
        let held = all.of(labels("held"));
        held.opened();
        all.of(labels("left")).opened();
        let text = shown(&all);
        assert_eq!((opened(&text, "held"), opened(&text, "left")), (Some(1), Some(1)));
        let text = until(&all, "it vanishes", |text| opened(text, "left").is_none());
        assert_eq!(opened(&text, "held"), Some(1), "held for longer than the recorder waits");
        held.opened();
        assert_eq!(opened(&shown(&all), "held"), Some(2), "its counts are not lost");
        let back = all.of(labels("left"));
        back.opened();
        assert_eq!(opened(&shown(&all), "left"), Some(1), "it begins again");
        drop((held, back));
        until(&all, "all vanish", |text| {
            opened(text, "held").or(opened(text, "left")).is_none()
                && text.contains("\nambit_metrics_label_sets 0\n")
        });
    }

    #[test]
    fn a_counter_that_does_not_count_stays_with_the_others_of_its_set() {
        let all = AllSeries::with_limit(MAX_LABEL_SETS, Duration::from_millis(20));
        let series = all.of(labels("quiet"));
        series.opened();
        // As if it were used all the time.
        series.used.store(u64::MAX, Ordering::Relaxed);
        drop(series);
        let begun = Instant::now();
        while begun.elapsed() < 10 * all.half {
            assert_eq!(opened(&shown(&all), "quiet"), Some(1));
        }
    }

    #[test]
    fn thousands_that_come_and_go_leave_nothing() {
        let all = AllSeries::with_limit(MAX_LABEL_SETS, Duration::from_secs(3));
        let held = all.of(labels("churn-held"));
        held.opened();
        for number in 0..5000 {
            all.of(labels(&format!("churn-{number}"))).opened();
        }
        let text = shown(&all);
        assert_eq!(text.matches("istio_tcp_connections_opened_total{").count(), 5001);
        let text = until(&all, "they vanish", |text| text.contains("\nambit_metrics_label_sets 1\n"));
        assert_eq!(text.matches("istio_tcp_connections_opened_total{").count(), 1);
        assert!(text.contains(r#"source_workload="churn-held""#), "what is open stays: {text}");
        let sets = all.sets.read();
        assert!(sets.known.capacity() + sets.leaving.capacity() < 100, "{sets:?}");
    }

    #[test]
    fn names_that_left_make_room_for_new_ones() {
        let all = AllSeries::with_limit(10, Duration::ZERO);
        for number in 0..100 {
            all.of(labels(&format!("room-{number}"))).opened();
            assert!(all.sets.read().len() <= 11, "{:?}", all.sets.read());
            let deadline = Instant::now() + Duration::from_secs(30);
            while all.sets.read().len() > 0 {
                shown(&all);
                assert!(Instant::now() < deadline);
            }
        }
        all.of(labels("room-last")).opened();
        assert_eq!(opened(&shown(&all), "room-last"), Some(1));
    }

    #[test]
    fn a_label_set_that_is_forgotten_while_it_is_taken_loses_no_count() {
        const LIVES: u32 = 100;
        let all = AllSeries::with_limit(MAX_LABEL_SETS, Duration::ZERO);
        let enough = AtomicBool::new(false);
        let (mut seen, mut lives, mut last) = (0, 0, None);
        let counted = std::thread::scope(|scope| {
            let counting = scope.spawn(|| {
                let mut counted = 0_u32;
                while !enough.load(Ordering::Relaxed) {
                    all.of(labels("raced")).opened();
                    counted += 1;
                    // Pauses of all lengths, so that it is forgotten and comes back at any moment of a
                    // scrape.
                    std::thread::sleep(Duration::from_micros(u64::from(counted % 97) * 10));
                }
                u64::from(counted)
            });
            let deadline = Instant::now() + Duration::from_mins(1);
            while lives < LIVES && Instant::now() < deadline {
                let now = opened(&shown(&all), "raced");
                // What was shown last before it was forgotten is all that was counted in it.
                if now.is_none() && last.is_some() {
                    seen += last.unwrap_or_default();
                    lives += 1;
                }
                last = now;
            }
            enough.store(true, Ordering::Relaxed);
            counting.join().expect("it counts")
        });
        assert!(lives >= LIVES, "it was forgotten only {lives} times");
        seen += opened(&shown(&all), "raced").or(last).unwrap_or_default();
        assert_eq!(seen, counted);
    }

    #[test]
    fn what_returns_waits_for_the_scrape_that_may_forget_it() {
        let all = AllSeries::with_limit(MAX_LABEL_SETS, Duration::ZERO);
        all.of(labels("returns")).opened();
        // A scrape that has taken it out and has not asked the recorder yet.
        let scraping = all.scraping.lock();
        all.sweep();
        all.of(labels("new")).opened();
        let (back, returned) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                all.of(labels("returns")).opened();
                back.send(()).expect("somebody waits");
            });
            let waits = returned.recv_timeout(Duration::from_millis(100));
            assert_eq!(waits, Err(RecvTimeoutError::Timeout));
            drop(scraping);
            returned.recv().expect("it returns");
        });
        assert_eq!(opened(&shown(&all), "returns"), Some(2), "the recorder had not forgotten it");
    }

    /// Not a test: what a scrape costs. `cargo test -p ambit-runtime --release -- --ignored --nocapture cost`
    #[test]
    #[ignore = "it measures, and asserts nothing"]
    fn cost_of_a_scrape() {
        let all = AllSeries::new(HOUR);
        for number in 0..1000 {
            let series = all.of(labels(&format!("cost-{number}")));
            series.opened();
            series.closed();
            series.failed();
            series.carried(Bytes { from_client: 1, from_server: 1 });
        }
        for _ in 0..5 {
            let began = Instant::now();
            let bytes = shown(&all).len();
            println!("5,000 series, {bytes} bytes: {:?}", began.elapsed());
        }
    }
}
