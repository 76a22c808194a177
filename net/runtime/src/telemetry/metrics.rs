//! The Prometheus recorder behind the `metrics` facade. Its text is served by our own admin server.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::Error;

/// Lines the log dropped because nobody read it.
const LOG_LINES_DROPPED: &str = "ambit_log_lines_dropped_total";

/// Renders what was counted.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// Makes the process count. Once per process, before anything is counted.
pub fn install() -> Result<Metrics, Error> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)
        .map_err(|_| Error::InstallMetrics { message: "a recorder is already installed".to_owned() })?;
    super::connection::describe();
    crate::certificates::describe();
    metrics::describe_counter!(LOG_LINES_DROPPED, "Log lines dropped because they were not read fast enough");
    Ok(Metrics(handle))
}

impl Metrics {
    /// All series in Prometheus' text format.
    pub fn render(&self) -> String {
        metrics::counter!(LOG_LINES_DROPPED).absolute(super::logs::dropped_lines());
        // Histograms gather samples until somebody asks for them; a scrape is when they are folded.
        self.0.run_upkeep();
        self.0.render()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::LazyLock;

    use super::*;

    /// The test process's one recorder.
    pub(crate) fn metrics() -> &'static Metrics {
        static METRICS: LazyLock<Metrics> = LazyLock::new(|| install().expect("the only recorder"));
        &METRICS
    }

    #[test]
    fn the_text_describes_its_series() {
        let text = metrics().render();
        assert!(text.contains("# TYPE ambit_log_lines_dropped_total counter\n"), "{text}");
        assert!(text.contains("# HELP ambit_log_lines_dropped_total "), "{text}");
    }

    #[test]
    fn a_second_recorder_is_refused() {
        metrics();
        assert!(matches!(install(), Err(Error::InstallMetrics { .. })));
    }
}
