//! Prometheus' text format, written by `metrics-exporter-prometheus`: an [`Exposition`] is one answer to one
//! scrape.
//!
//! Counters and histograms live in recorders that last ([`COUNTS`]; connections have one whose series
//! expire). Gauges, and what is counted elsewhere, are set in a recorder of the exposition's own: what is
//! gone by the next scrape is not in it.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::LazyLock;

use metrics::{Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

/// What the format is called in `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bounds in seconds for what takes from a fraction of a millisecond (on one machine) to the longest
/// deadline.
pub const SECONDS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The process's counters and histograms.
pub(super) static COUNTS: LazyLock<PrometheusRecorder> = LazyLock::new(|| {
    let builder = PrometheusBuilder::new();
    builder.set_buckets(SECONDS).expect("there are buckets").build_recorder()
});

/// Recorders may filter by it; ours takes everything.
const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// What a family's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// The present value.
    Gauge,
    /// How often a number was how large.
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric's name, kind and one sentence.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name, as in `ambit_connections_open`.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// One sentence for `# HELP`.
    pub help: &'static str,
}

impl Family {
    /// A number that only grows; its name ends in `_total`.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Counter, help }
    }

    /// A number as it is now.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Gauge, help }
    }

    /// How often a number was how large; its name ends in a unit.
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Histogram, help }
    }

    /// Describes the family to a recorder.
    pub fn describe(&self, recorder: &PrometheusRecorder) {
        let describe = match self.kind {
            Kind::Counter => PrometheusRecorder::describe_counter,
            Kind::Gauge => PrometheusRecorder::describe_gauge,
            Kind::Histogram => PrometheusRecorder::describe_histogram,
        };
        describe(recorder, self.name.into(), None, self.help.into());
    }

    /// The counter with these labels; it is shown from now on.
    pub fn counter_in(&self, recorder: &PrometheusRecorder, labels: Vec<Label>) -> metrics::Counter {
        recorder.register_counter(&Key::from_parts(self.name, labels), &METADATA)
    }

    /// The histogram with these labels; it is shown from now on.
    pub fn histogram_in(&self, recorder: &PrometheusRecorder, labels: Vec<Label>) -> metrics::Histogram {
        recorder.register_histogram(&Key::from_parts(self.name, labels), &METADATA)
    }

    /// What the format says ahead of the samples.
    fn head(&self) -> String {
        let Self { name, kind, help } = self;
        format!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.as_str())
    }
}

/// A label of a sample. The exporter does not escape a backslash that looks like the start of an escape
/// sequence, so two values could become one. Here every backslash is escaped, which the exporter leaves as it
/// is.
pub fn label(name: &'static str, value: impl AsRef<str> + Into<metrics::SharedString>) -> Label {
    if value.as_ref().contains('\\') {
        Label::new(name, value.as_ref().replace('\\', r"\\"))
    } else {
        Label::new(name, value)
    }
}

/// A sample's value, written as Prometheus reads it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A count.
    Whole(u64),
    /// A measurement.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(u64::try_from(value).unwrap_or(u64::MAX))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl Value {
    #[expect(clippy::cast_precision_loss, reason = "Prometheus' values are of this type too")]
    fn real(self) -> f64 {
        match self {
            Self::Whole(value) => value as f64,
            Self::Real(value) => value,
        }
    }
}

/// One answer to a scrape, being put together.
#[derive(Debug)]
pub struct Exposition {
    /// Set for this exposition only.
    now: PrometheusRecorder,
    /// The text of other recorders.
    text: String,
    families: BTreeMap<&'static str, Family>,
}

impl Default for Exposition {
    fn default() -> Self {
        let now = PrometheusBuilder::new().build_recorder();
        Self { now, text: String::new(), families: BTreeMap::new() }
    }
}

/// Sets one family's samples.
#[derive(Debug)]
pub struct Samples<'a> {
    now: &'a PrometheusRecorder,
    text: &'a mut String,
    family: Family,
}

impl Exposition {
    /// Begins a family of counters or gauges that are read now.
    pub fn family(&mut self, family: &Family) -> Samples<'_> {
        self.announce(family);
        family.describe(&self.now);
        Samples { now: &self.now, text: &mut self.text, family: *family }
    }

    /// A family with one sample and no labels.
    pub fn single(&mut self, family: &Family, value: impl Into<Value>) {
        self.family(family).sample(&[], value);
    }

    /// A family that some recorder holds. It is in the text even while it has no samples.
    pub fn announce(&mut self, family: &Family) {
        self.families.insert(family.name, *family);
    }

    /// Begins a family of histograms that are counted elsewhere.
    pub fn histograms(&mut self, family: &Family) -> Histograms<'_> {
        self.text.push_str(&family.head());
        Histograms { text: &mut self.text, family: *family }
    }

    /// Adds all that a recorder holds.
    pub fn add(&mut self, recorder: &PrometheusRecorder) {
        self.text.push_str(&recorder.handle().render());
    }

    /// The whole text, with everything in [`COUNTS`].
    pub fn into_text(mut self) -> String {
        self.add(&COUNTS);
        self.into_own_text()
    }

    /// The text of what was added and set.
    pub fn into_own_text(self) -> String {
        let mut text = self.text;
        text.push_str(&self.now.handle().render());
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let types: HashSet<&str> = types.collect();
        let empty = self.families.values().filter(|family| !types.contains(family.name));
        let heads: String = empty.map(Family::head).collect();
        text + &heads
    }
}

impl Samples<'_> {
    /// One sample. The exporter's counters are whole numbers: one with a fraction (time) has no labels and is
    /// written as it is.
    pub fn sample(&mut self, labels: &[(&'static str, &str)], value: impl Into<Value>) -> &mut Self {
        let labels = labels.iter().map(|(name, value)| label(name, (*value).to_owned()));
        let family = &self.family;
        match (family.kind, value.into()) {
            (Kind::Counter, Value::Whole(count)) => {
                family.counter_in(self.now, labels.collect()).absolute(count);
            }
            (Kind::Counter, Value::Real(value)) => {
                debug_assert_eq!(labels.len(), 0, "{} has labels and fractions", family.name);
                // Writing to a text does not fail.
                let _ = writeln!(self.text, "{}{} {value}", family.head(), family.name);
            }
            (Kind::Gauge | Kind::Histogram, value) => {
                let key = Key::from_parts(family.name, labels.collect::<Vec<_>>());
                self.now.register_gauge(&key, &METADATA).set(value.real());
            }
        }
        self
    }
}

/// Writes one family's histograms.
#[derive(Debug)]
pub struct Histograms<'a> {
    text: &'a mut String,
    family: Family,
}

impl Histograms<'_> {
    /// One histogram: how many measurements were up to each of the bounds and above the one before, then how
    /// many were above all of them; and the sum of all measurements.
    pub fn sample(
        &mut self,
        labels: &[(&'static str, &str)],
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) -> &mut Self {
        let name = self.family.name;
        let mut text = String::new();
        for (label, value) in labels {
            let escaped = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            // Writing to a text does not fail, here and below.
            let _ = write!(text, "{label}=\"{escaped}\",");
        }
        let mut total = 0;
        for (bound, count) in bounds.iter().zip(counts) {
            total += count;
            let _ = writeln!(self.text, "{name}_bucket{{{text}le=\"{bound}\"}} {total}");
        }
        total += counts.get(bounds.len()).copied().unwrap_or(0);
        let _ = writeln!(self.text, "{name}_bucket{{{text}le=\"+Inf\"}} {total}");
        let labels = text.trim_end_matches(',');
        let _ = writeln!(self.text, "{name}_sum{{{labels}}} {sum}");
        let _ = writeln!(self.text, "{name}_count{{{labels}}} {total}");
        self
    }
}

#[cfg(test)]
mod tests;
