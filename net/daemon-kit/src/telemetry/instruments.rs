//! Counters and histograms that last between scrapes. Each is a `static` next to what it counts, and is
//! announced when an exposition is written, so that it is shown before it first counts.
//!
//! Entry points: [`Counter`], [`Counters`], [`Durations`].

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::exposition::{COUNTS, Exposition, Family, label};

/// Label sets that one [`Counters`] distinguishes; its labels are meant to have few values.
const MAX_SETS: usize = 4096;

/// The recorder keeps every measurement until they are put into buckets: that is done after so many, scraped
/// or not.
const MEASUREMENTS_KEPT: u64 = 1024;
static MEASURED: AtomicU64 = AtomicU64::new(0);

/// Increments that were not counted because there were too many label sets.
static UNCOUNTED: Counters<1> = Counters::new(
    "ambit_metrics_uncounted_total",
    "Increments that were not counted because a metric has too many label sets, by metric.",
    ["metric"],
);

/// A number that only grows.
#[derive(Debug)]
pub struct Counter {
    family: Family,
    count: OnceLock<metrics::Counter>,
}

impl Counter {
    /// A counter; its name ends in `_total`.
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

    /// Announces it to an exposition.
    pub fn show(&self, all: &mut Exposition) {
        self.counter();
        all.announce(&self.family);
    }
}

/// Counters of one family, distinguished by `N` labels.
#[derive(Debug)]
pub struct Counters<const N: usize> {
    family: Family,
    labels: [&'static str; N],
    counts: RwLock<BTreeMap<[Box<str>; N], metrics::Counter>>,
}

impl<const N: usize> Counters<N> {
    /// Counters with these labels; their name ends in `_total`.
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

    /// Announces it to an exposition.
    pub fn show(&self, all: &mut Exposition) {
        all.announce(&self.family);
    }
}

/// Announces what concerns all instruments.
pub(super) fn show(all: &mut Exposition) {
    UNCOUNTED.show(all);
}

/// Histograms of durations of one family, distinguished by one label whose values are known.
#[derive(Debug)]
pub struct Durations {
    family: Family,
    label: &'static str,
    values: &'static [&'static str],
    histograms: OnceLock<Box<[metrics::Histogram]>>,
}

impl Durations {
    /// Histograms of this label's values; their name ends in `_seconds`.
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

    /// Announces it to an exposition.
    pub fn show(&self, all: &mut Exposition) {
        self.histograms();
        all.announce(&self.family);
    }
}

#[cfg(test)]
mod tests;
