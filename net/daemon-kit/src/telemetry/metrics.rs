//! All metrics of the process, as Prometheus reads them: [`Metrics::render`].
//!
//! Every module shows its own ([`Metrics::collect`]). A gauge is read when it is scraped, so it is never
//! older than the scrape, and what is gone is not shown.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::exposition::Exposition;
use super::{instruments, logs, process};

type Collector = Box<dyn Fn(&mut Exposition) + Send + Sync>;

/// The process's metrics. Clones are the same metrics.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Vec<Collector>>>);

impl Metrics {
    /// With what every process has: its build, its memory and time, the log. `component`: which program it
    /// is.
    pub fn new(component: &'static str) -> Self {
        let (metrics, began) = (Self::default(), SystemTime::now());
        metrics.collect(move |all| process::show(component, began, all));
        metrics.collect(logs::show);
        metrics.collect(instruments::show);
        metrics
    }

    /// Adds the state of the runtime that the caller runs in.
    pub fn collect_runtime(&self) {
        let runtime = tokio::runtime::Handle::current();
        self.collect(move |all| process::show_runtime(&runtime, all));
    }

    /// Adds what `show` writes; it is asked at every scrape, on the thread of the HTTP servers.
    pub fn collect(&self, show: impl Fn(&mut Exposition) + Send + Sync + 'static) {
        self.0.lock().push(Box::new(show));
    }

    /// All series in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut all = Exposition::default();
        for show in &*self.0.lock() {
            show(&mut all);
        }
        all.into_text()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::exposition::Family;

    #[test]
    fn exposition_describes_its_series() {
        let metrics = Metrics::new("test");
        metrics.collect(|all| all.single(&Family::gauge("mine", "Mine."), 3_u64));
        let text = metrics.render();
        for line in [
            "# TYPE ambit_log_lines_dropped_total counter\n",
            "# HELP ambit_log_lines_dropped_total ",
            "\nmine 3\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
    }
}
