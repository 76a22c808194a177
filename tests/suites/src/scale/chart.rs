//! What was measured at each number of clients, as a picture.

use std::time::Duration;

use ambit_harness::chart::{self, Bar, Panel};

/// Figures at a number of clients.
#[derive(Clone, Debug)]
pub struct Stage {
    pub clients: usize,
    /// From a change's sending to the API server until the last client had it; sorted.
    pub times: Vec<Duration>,
    /// Of the controller, in MB.
    pub resident: u64,
    /// Processor time of the controller for one change, in milliseconds.
    pub cpu: f64,
}

impl Stage {
    /// The time in milliseconds that this percentage of the changes took at most.
    pub fn percentile(&self, percent: usize) -> f64 {
        let last = self.times.len().saturating_sub(1);
        self.times.get((last * percent).div_ceil(100)).copied().unwrap_or_default().as_secs_f64() * 1e3
    }
}

/// How a figure is read from a stage.
type Figure = fn(&Stage) -> f64;

/// Draws bars for each stage.
pub fn draw(title: &str, stages: &[Stage]) -> String {
    let figures: [(&str, &str, Figure); 4] = [
        ("a pod's change to all clients, p50, ms", "#3b82f6", |stage| stage.percentile(50)),
        ("a pod's change to all clients, p99, ms", "#1d4ed8", |stage| stage.percentile(99)),
        ("controller's processor time for a change, ms", "#22a565", |stage| stage.cpu),
        ("controller's memory, MB", "#b45309", |stage| {
            f64::from(u32::try_from(stage.resident).unwrap_or(u32::MAX))
        }),
    ];
    let panels = figures.map(|(title, colour, figure)| {
        let bar = |stage: &Stage| {
            let value = figure(stage);
            Bar {
                label: format!("{} clients", stage.clients),
                value,
                text: format!("{value:.1}"),
                colour,
                range: None,
                mark: None,
            }
        };
        Panel { title: title.to_owned(), bars: stages.iter().map(bar).collect(), reference: None }
    });
    chart::draw(title, "lower is better", &panels)
}

#[cfg(test)]
mod tests {
    use super::{Duration, Stage};

    #[test]
    fn percentiles() {
        let stage = |times: &[u64]| Stage {
            clients: 1,
            times: times.iter().copied().map(Duration::from_millis).collect(),
            resident: 0,
            cpu: 0.0,
        };
        let hundred: Vec<u64> = (1..=100).collect();
        let rows: [(&str, &[u64], usize, f64); 5] = [
            ("none", &[], 50, 0.0),
            ("one", &[7], 99, 7.0),
            ("the middle", &[1, 2, 3], 50, 2.0),
            ("99 of 100: the last but one at least", &hundred, 99, 100.0),
            ("the most", &hundred, 100, 100.0),
        ];
        for (name, times, percent, expected) in rows {
            assert!((stage(times).percentile(percent) - expected).abs() < 1e-6, "{name}");
        }
    }
}
