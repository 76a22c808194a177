//! What counts and measures between scrapes. Each is a `static` next to what it watches, and is shown by whoever
//! writes the exposition.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::exposition::{Exposition, Family, Value, label_text};

/// Bounds in seconds for what takes from a fraction of a millisecond (on one machine) to the longest deadline.
pub const SECONDS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Label sets that one [`Counters`] tells apart; its labels are meant to have few values.
const MAX_SETS: usize = 4096;

/// A number that only grows.
#[derive(Debug)]
pub struct Counter {
    family: Family,
    value: AtomicU64,
}

impl Counter {
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { family: Family::counter(name, help), value: AtomicU64::new(0) }
    }

    /// One more.
    pub fn count(&self) {
        self.value.fetch_add(1, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    pub fn show(&self, all: &mut Exposition) {
        all.single(&self.family, self.value());
    }
}

/// Counters of one family, told apart by `N` labels.
#[derive(Debug)]
pub struct Counters<const N: usize> {
    family: Family,
    labels: [&'static str; N],
    values: RwLock<BTreeMap<[Box<str>; N], AtomicU64>>,
}

impl<const N: usize> Counters<N> {
    pub const fn new(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Self {
        Self { family: Family::counter(name, help), labels, values: RwLock::new(BTreeMap::new()) }
    }

    /// One more with these values of the labels.
    pub fn count(&self, values: [&str; N]) {
        let key = values.map(Box::from);
        if let Some(value) = self.values.read().get(&key) {
            value.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut all = self.values.write();
        if all.len() < MAX_SETS || all.contains_key(&key) {
            all.entry(key).or_default().fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn show(&self, all: &mut Exposition) {
        let mut samples = all.family(&self.family);
        for (values, count) in &*self.values.read() {
            let labels: Vec<_> = self.labels.into_iter().zip(values.iter().map(|value| &**value)).collect();
            samples.sample(&labels, count.load(Ordering::Relaxed));
        }
    }
}

/// Histograms of durations of one family, told apart by one label whose values are known.
#[derive(Debug)]
pub struct Durations {
    family: Family,
    label: &'static str,
    values: &'static [&'static str],
    cells: OnceLock<Box<[Cell]>>,
}

/// One histogram: per bucket how many fell into it, and their sum.
#[derive(Debug)]
struct Cell {
    buckets: Box<[AtomicU64]>,
    microseconds: AtomicU64,
}

impl Durations {
    pub const fn new(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: &'static [&'static str],
    ) -> Self {
        Self { family: Family::histogram(name, help), label, values, cells: OnceLock::new() }
    }

    /// One more; a value that was not announced is left out.
    pub fn observe(&self, value: &str, took: Duration) {
        let Some(place) = self.values.iter().position(|known| *known == value) else { return };
        let cell = &self.cells()[place];
        let seconds = took.as_secs_f64();
        let bucket = SECONDS.partition_point(|bound| *bound < seconds);
        cell.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        cell.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }

    fn cells(&self) -> &[Cell] {
        self.cells.get_or_init(|| {
            let cell = || Cell {
                buckets: (0..=SECONDS.len()).map(|_| AtomicU64::new(0)).collect(),
                microseconds: AtomicU64::new(0),
            };
            self.values.iter().map(|_| cell()).collect()
        })
    }

    pub fn show(&self, all: &mut Exposition) {
        let mut samples = all.family(&self.family);
        for (value, cell) in self.values.iter().zip(self.cells()) {
            let mut below = 0;
            for (place, bucket) in cell.buckets.iter().enumerate() {
                below += bucket.load(Ordering::Relaxed);
                let bound = SECONDS.get(place).map_or_else(|| "+Inf".to_owned(), ToString::to_string);
                let labels = label_text(&[(self.label, value), ("le", &bound)]);
                samples.written("_bucket", &labels, Value::Whole(below));
            }
            let labels = label_text(&[(self.label, value)]);
            let sum = Duration::from_micros(cell.microseconds.load(Ordering::Relaxed));
            samples.written("_sum", &labels, Value::Real(sum.as_secs_f64()));
            samples.written("_count", &labels, Value::Whole(below));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(show: impl Fn(&mut Exposition)) -> Vec<String> {
        let mut all = Exposition::default();
        show(&mut all);
        all.into_text().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn counters_are_told_apart_by_their_labels() {
        static COUNTERS: Counters<2> = Counters::new("c_total", "c", ["a", "b"]);
        for values in [["1", "2"], ["1", "3"], ["1", "2"]] {
            COUNTERS.count(values);
        }
        assert_eq!(
            text(|all| COUNTERS.show(all)),
            [r#"c_total{a="1",b="2"} 2"#, r#"c_total{a="1",b="3"} 1"#]
        );
    }

    #[test]
    fn counters_do_not_grow_without_bound() {
        let counters = Counters::new("c_total", "c", ["a"]);
        for number in 0..2 * MAX_SETS {
            counters.count([&number.to_string()]);
        }
        assert_eq!(text(|all| counters.show(all)).len(), MAX_SETS);
    }

    #[test]
    fn a_histogram_counts_what_is_at_most_its_bounds() {
        let histogram = Durations::new("d_seconds", "d", "way", &["in", "out"]);
        for milliseconds in [1, 1, 2, 20_000] {
            histogram.observe("in", Duration::from_millis(milliseconds));
        }
        histogram.observe("neither", Duration::ZERO);
        let lines = text(|all| histogram.show(all));
        let value = |start: &str| {
            let line = lines.iter().find(|line| line.starts_with(start)).expect(start);
            line.rsplit_once(' ').expect("a value").1
        };
        for (bound, below) in [("0.0005", "0"), ("0.001", "2"), ("0.0025", "3"), ("10", "3"), ("+Inf", "4")] {
            assert_eq!(value(&format!(r#"d_seconds_bucket{{way="in",le="{bound}"}}"#)), below, "{bound}");
        }
        assert_eq!(value(r#"d_seconds_sum{way="in"}"#), "20.004");
        assert_eq!(value(r#"d_seconds_count{way="in"}"#), "4");
        assert_eq!(value(r#"d_seconds_count{way="out"}"#), "0");
    }
}
