//! What counts and measures between scrapes. Each is a `static` next to what it watches, and is announced by
//! whoever writes the exposition: then it is shown before it first counts.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::exposition::{COUNTS, Exposition, Family, label};

/// Label sets that one [`Counters`] tells apart; its labels are meant to have few values.
const MAX_SETS: usize = 4096;

/// The recorder keeps every measurement until they are put into buckets: that is done after so many, scraped
/// or not.
const MEASUREMENTS_KEPT: u64 = 1024;
static MEASURED: AtomicU64 = AtomicU64::new(0);

/// What was not counted because there were too many label sets.
static UNCOUNTED: Counters<1> = Counters::new(
    "ambit_metrics_uncounted_total",
    "What was not counted because a metric has too many label sets, by metric.",
    ["metric"],
);

/// A number that only grows.
#[derive(Debug)]
pub struct Counter {
    family: Family,
    count: OnceLock<metrics::Counter>,
}

impl Counter {
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { family: Family::counter(name, help), count: OnceLock::new() }
    }

    /// One more.
    pub fn count(&self) {
        self.counter().increment(1);
    }

    fn counter(&self) -> &metrics::Counter {
        self.count.get_or_init(|| {
            self.family.describe(&COUNTS);
            self.family.counter_in(&COUNTS, Vec::new())
        })
    }

    pub fn show(&self, all: &mut Exposition) {
        self.counter();
        all.announce(&self.family);
    }
}

/// Counters of one family, told apart by `N` labels.
#[derive(Debug)]
pub struct Counters<const N: usize> {
    family: Family,
    labels: [&'static str; N],
    counts: RwLock<BTreeMap<[Box<str>; N], metrics::Counter>>,
}

impl<const N: usize> Counters<N> {
    pub const fn new(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Self {
        Self { family: Family::counter(name, help), labels, counts: RwLock::new(BTreeMap::new()) }
    }

    /// One more with these values of the labels.
    pub fn count(&self, values: [&str; N]) {
        let key = values.map(Box::from);
        if let Some(count) = self.counts.read().get(&key) {
            count.increment(1);
            return;
        }
        let mut counts = self.counts.write();
        if counts.len() < MAX_SETS || counts.contains_key(&key) {
            counts.entry(key).or_insert_with_key(|values| self.counter(values)).increment(1);
        } else {
            drop(counts);
            UNCOUNTED.count([self.family.name]);
        }
    }

    fn counter(&self, values: &[Box<str>; N]) -> metrics::Counter {
        self.family.describe(&COUNTS);
        let labels = self.labels.into_iter().zip(values);
        let labels = labels.map(|(name, value)| label(name, value.to_string())).collect();
        self.family.counter_in(&COUNTS, labels)
    }

    pub fn show(&self, all: &mut Exposition) {
        all.announce(&self.family);
    }
}

/// Announces what concerns all instruments.
pub(super) fn show(all: &mut Exposition) {
    UNCOUNTED.show(all);
}

/// Histograms of durations of one family, told apart by one label whose values are known.
#[derive(Debug)]
pub struct Durations {
    family: Family,
    label: &'static str,
    values: &'static [&'static str],
    histograms: OnceLock<Box<[metrics::Histogram]>>,
}

impl Durations {
    pub const fn new(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: &'static [&'static str],
    ) -> Self {
        Self { family: Family::histogram(name, help), label, values, histograms: OnceLock::new() }
    }

    /// One more; a value that was not announced is left out.
    pub fn observe(&self, value: &str, took: Duration) {
        let Some(place) = self.values.iter().position(|known| *known == value) else { return };
        self.histograms()[place].record(took.as_secs_f64());
        if (MEASURED.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(MEASUREMENTS_KEPT) {
            COUNTS.handle().run_upkeep();
        }
    }

    fn histograms(&self) -> &[metrics::Histogram] {
        self.histograms.get_or_init(|| {
            self.family.describe(&COUNTS);
            let histogram =
                |value: &&'static str| self.family.histogram_in(&COUNTS, vec![label(self.label, *value)]);
            self.values.iter().map(histogram).collect()
        })
    }

    pub fn show(&self, all: &mut Exposition) {
        self.histograms();
        all.announce(&self.family);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The samples of the family of this name, in order.
    fn text(name: &str, show: impl Fn(&mut Exposition)) -> Vec<String> {
        let mut all = Exposition::default();
        show(&mut all);
        let text = all.into_text();
        let mut lines: Vec<_> =
            text.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect();
        lines.sort();
        lines
    }

    #[test]
    fn a_counter_is_shown_before_it_counts() {
        static COUNTER: Counter = Counter::new("one_total", "one");
        assert_eq!(text("one_total", |all| COUNTER.show(all)), ["one_total 0"]);
        COUNTER.count();
        assert_eq!(text("one_total", |all| COUNTER.show(all)), ["one_total 1"]);
    }

    #[test]
    fn counters_are_told_apart_by_their_labels() {
        static COUNTERS: Counters<2> = Counters::new("apart_total", "c", ["a", "b"]);
        for values in [["1", "2"], ["1", "3"], ["1", "2"]] {
            COUNTERS.count(values);
        }
        assert_eq!(
            text("apart_total", |all| COUNTERS.show(all)),
            [r#"apart_total{a="1",b="2"} 2"#, r#"apart_total{a="1",b="3"} 1"#]
        );
    }

    #[test]
    fn counters_do_not_grow_without_bound() {
        let counters = Counters::new("bound_total", "c", ["a"]);
        for number in 0..2 * MAX_SETS {
            counters.count([&number.to_string()]);
        }
        assert_eq!(text("bound_total", |all| counters.show(all)).len(), MAX_SETS);
        let left_out = format!(r#"ambit_metrics_uncounted_total{{metric="bound_total"}} {MAX_SETS}"#);
        assert_eq!(text("ambit_metrics_uncounted_total", show), [left_out]);
    }

    #[test]
    fn a_histogram_counts_what_is_at_most_its_bounds() {
        static HISTOGRAM: Durations = Durations::new("d_seconds", "d", "way", &["in", "out"]);
        for milliseconds in [1, 1, 2, 20_000] {
            HISTOGRAM.observe("in", Duration::from_millis(milliseconds));
        }
        HISTOGRAM.observe("neither", Duration::ZERO);
        let lines = text("d_seconds", |all| HISTOGRAM.show(all));
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
