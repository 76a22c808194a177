//! Istio's HTTP metrics: [`Cache::series`] finds those that a request counts in, [`show`] shows all of them.
//!
//! Values of labels are names from the mesh, never addresses or pods, so the number of series is that of
//! pairs of workloads that talk. A client's connection remembers the series of its last requests, so that
//! none of them looks anything up that others use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use ambit_core::model::{Identity, Service, Workload};
use ambit_daemon_kit::telemetry::exposition::{Exposition, Family};
use ambit_daemon_kit::telemetry::instruments::Counter;
use foldhash::quality::RandomState;
use parking_lot::{Mutex, RwLock};

use crate::failure::Flag;

const REQUESTS: Family = Family::counter("istio_requests_total", "HTTP and gRPC requests that have ended.");
const DURATIONS: Family = Family::histogram(
    "istio_request_duration_milliseconds",
    "From the head of a request to the end of its response.",
);
const REQUEST_BYTES: Family = Family::histogram("istio_request_bytes", "Bytes of the bodies of requests.");
const RESPONSE_BYTES: Family = Family::histogram("istio_response_bytes", "Bytes of the bodies of responses.");

static OVERFLOW: Counter = Counter::new(
    "ambit_metrics_request_label_sets_overflow_total",
    "Requests counted without names because there were too many label sets.",
);

/// Envoy's own.
const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
/// Label sets that are kept.
const MAX_LABEL_SETS: usize = 10_000;
/// How long names are shown that no request uses.
const IDLE: Duration = Duration::from_hours(1);
/// What one connection remembers.
const REMEMBERED: usize = 4;
/// Of a name that is not known, as Istio writes it.
const UNKNOWN: &str = "unknown";

static ALL: LazyLock<RwLock<HashMap<Labels, Arc<Series>, RandomState>>> = LazyLock::new(RwLock::default);
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Everything that distinguishes series.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    pub(super) source: Option<Names>,
    pub(super) principal: Option<Identity>,
    pub(super) destination: Option<Names>,
    pub(super) destination_principal: Option<Identity>,
    pub(super) service: Option<ServiceNames>,
    pub(super) answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Names {
    workload: Arc<str>,
    namespace: Arc<str>,
    canonical_service: Arc<str>,
    canonical_revision: Arc<str>,
    cluster: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ServiceNames {
    host: Arc<str>,
    name: Arc<str>,
    namespace: Arc<str>,
}

/// How a request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) flag: Flag,
    pub(super) is_grpc: bool,
    pub(super) grpc_status: Option<u16>,
}

#[derive(Debug, Default)]
pub(super) struct Series {
    requests: AtomicU64,
    /// In microseconds.
    durations: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    /// In milliseconds since [`EPOCH`].
    used: AtomicU64,
}

#[derive(Debug, Default)]
struct Histogram {
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

/// What tells a request from the others of its connection.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) workload: Option<&'a Arc<Workload>>,
    pub(super) service: Option<&'a Arc<Service>>,
    pub(super) answer: Answer,
}

/// The series of a connection's last requests.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<Vec<Remembered>>);

/// Endpoint and service are compared by their place in memory, which they keep while they are held here.
#[derive(Debug)]
struct Remembered {
    workload: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    answer: Answer,
    series: Arc<Series>,
}

impl Cache {
    /// The series of a request; its labels are made only where it is not remembered.
    pub(super) fn series(&self, request: &Asked<'_>, labels: impl FnOnce() -> Labels) -> Arc<Series> {
        let mut last = self.0.lock();
        if let Some(known) = last.iter().find(|it| it.is_of(request)) {
            return known.series.clone();
        }
        let series = series_of(labels());
        if last.len() == REMEMBERED {
            last.remove(0);
        }
        let Asked { workload, service, answer } = *request;
        let (workload, service) = (workload.cloned(), service.cloned());
        last.push(Remembered { workload, service, answer, series: series.clone() });
        series
    }
}

fn series_of(labels: Labels) -> Arc<Series> {
    if let Some(series) = ALL.read().get(&labels) {
        return series.clone();
    }
    let mut all = ALL.write();
    let labels = if all.len() < MAX_LABEL_SETS || all.contains_key(&labels) {
        labels
    } else {
        OVERFLOW.count();
        Labels { answer: labels.answer, ..Labels::default() }
    };
    all.entry(labels).or_default().clone()
}

impl Remembered {
    fn is_of(&self, request: &Asked<'_>) -> bool {
        fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
            match (one, other) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                (None, None) => true,
                _ => false,
            }
        }
        self.answer == request.answer
            && same(self.workload.as_ref(), request.workload)
            && same(self.service.as_ref(), request.service)
    }
}

impl Series {
    /// One more request, which took this time and had bodies of these sizes.
    pub(super) fn count(&self, took: Duration, request_bytes: u64, response_bytes: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.durations.add(took.as_secs_f64() * 1000.0, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.request_bytes.add_bytes(request_bytes);
        self.response_bytes.add_bytes(response_bytes);
        self.used.store(now(), Ordering::Relaxed);
    }
}

impl Histogram {
    fn add(&self, value: f64, summand: u64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(summand, Ordering::Relaxed);
    }

    #[expect(clippy::cast_precision_loss, reason = "buckets need no more")]
    fn add_bytes(&self, bytes: u64) {
        self.add(bytes as f64, bytes);
    }

    fn counts(&self) -> [u64; BOUNDS.len() + 1] {
        std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed))
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus' values are of this type too")]
    fn sum(&self) -> f64 {
        self.sum.load(Ordering::Relaxed) as f64
    }
}

fn now() -> u64 {
    u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Writes them, without what was not used for long.
pub(crate) fn show(all: &mut Exposition) {
    let idle = u64::try_from(IDLE.as_millis()).unwrap_or(u64::MAX);
    let shown: Vec<(Labels, Arc<Series>)> = {
        let mut known = ALL.write();
        // Those that connections remember are held.
        known.retain(|_, series| {
            let since = now().saturating_sub(series.used.load(Ordering::Relaxed));
            Arc::strong_count(series) > 1 || since < idle
        });
        known.iter().map(|(labels, series)| (labels.clone(), series.clone())).collect()
    };
    let texts: Vec<Texts> = shown.iter().map(|(labels, _)| labels.texts()).collect();
    let mut requests = all.family(&REQUESTS);
    for (labels, (_, series)) in texts.iter().zip(&shown) {
        requests.sample(&borrowed(labels), series.requests.load(Ordering::Relaxed));
    }
    let families: [(&Family, Part, f64); 3] = [
        (&DURATIONS, |it| &it.durations, 1000.0),
        (&REQUEST_BYTES, |it| &it.request_bytes, 1.0),
        (&RESPONSE_BYTES, |it| &it.response_bytes, 1.0),
    ];
    for (family, histogram, unit) in families {
        let mut histograms = all.histograms(family);
        for (labels, (_, series)) in texts.iter().zip(&shown) {
            let histogram = histogram(series);
            histograms.sample(&borrowed(labels), &BOUNDS, &histogram.counts(), histogram.sum() / unit);
        }
    }
    OVERFLOW.show(all);
}

/// One of a series' histograms.
type Part = fn(&Series) -> &Histogram;
type Texts = Vec<(&'static str, String)>;

fn borrowed(texts: &Texts) -> Vec<(&'static str, &str)> {
    texts.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

impl Labels {
    fn texts(&self) -> Texts {
        let known = |value: Option<&Arc<str>>| match value {
            Some(value) if !value.is_empty() => value.to_string(),
            _ => UNKNOWN.to_owned(),
        };
        let principal = |it: &Option<Identity>| it.as_ref().map_or(UNKNOWN.to_owned(), ToString::to_string);
        let Answer { code, flag, is_grpc, grpc_status } = self.answer;
        let service = self.service.as_ref();
        let mut texts = vec![
            ("reporter", "waypoint".to_owned()),
            ("request_protocol", if is_grpc { "grpc" } else { "http" }.to_owned()),
            ("response_code", code.to_string()),
            ("grpc_response_status", grpc_status.map_or_else(String::new, |status| status.to_string())),
            ("response_flags", flag.as_str().to_owned()),
            ("connection_security_policy", "mutual_tls".to_owned()),
            ("destination_service", known(service.map(|it| &it.host))),
            ("destination_service_name", known(service.map(|it| &it.name))),
            ("destination_service_namespace", known(service.map(|it| &it.namespace))),
            ("source_principal", principal(&self.principal)),
            ("destination_principal", principal(&self.destination_principal)),
        ];
        let (source, destination) = (self.source.as_ref(), self.destination.as_ref());
        texts.extend([
            ("source_workload", known(source.map(|it| &it.workload))),
            ("source_workload_namespace", known(source.map(|it| &it.namespace))),
            ("source_canonical_service", known(source.map(|it| &it.canonical_service))),
            ("source_canonical_revision", known(source.map(|it| &it.canonical_revision))),
            ("source_app", known(source.map(|it| &it.canonical_service))),
            ("source_version", known(source.map(|it| &it.canonical_revision))),
            ("source_cluster", known(source.map(|it| &it.cluster))),
            ("destination_workload", known(destination.map(|it| &it.workload))),
            ("destination_workload_namespace", known(destination.map(|it| &it.namespace))),
            ("destination_canonical_service", known(destination.map(|it| &it.canonical_service))),
            ("destination_canonical_revision", known(destination.map(|it| &it.canonical_revision))),
            ("destination_app", known(destination.map(|it| &it.canonical_service))),
            ("destination_version", known(destination.map(|it| &it.canonical_revision))),
            ("destination_cluster", known(destination.map(|it| &it.cluster))),
        ]);
        texts
    }
}

impl ServiceNames {
    pub(super) fn new(service: &Service) -> Self {
        Self {
            host: service.key.hostname.clone(),
            name: service.name.clone(),
            namespace: service.key.namespace.clone(),
        }
    }
}

impl Names {
    pub(super) fn new(workload: &Workload) -> Self {
        Self {
            workload: workload.workload_name.clone(),
            namespace: workload.namespace.clone(),
            canonical_service: workload.canonical_name.clone(),
            canonical_revision: workload.canonical_revision.clone(),
            cluster: workload.cluster.clone(),
        }
    }
}
