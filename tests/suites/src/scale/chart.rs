//! What was measured at each number of clients, as a picture.

use std::fmt::Write as _;
use std::time::Duration;

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

const WIDTH: f64 = 760.0;
const LEFT: f64 = 120.0;
const SPAN: f64 = 470.0;
const STEP: f64 = 22.0;

type Value = fn(&Stage) -> f64;

/// Draws bars for each stage.
pub fn draw(title: &str, stages: &[Stage]) -> String {
    let mut body = String::new();
    let mut top = 60.0;
    let panels: [(&str, &str, Value); 4] = [
        ("a pod's change to all clients, p50, ms", "#3b82f6", |stage| stage.percentile(50)),
        ("a pod's change to all clients, p99, ms", "#1d4ed8", |stage| stage.percentile(99)),
        ("controller's processor time for a change, ms", "#22a565", |stage| stage.cpu),
        ("controller's memory, MB", "#b45309", |stage| {
            f64::from(u32::try_from(stage.resident).unwrap_or(u32::MAX))
        }),
    ];
    for (name, colour, value) in panels {
        let most = stages.iter().map(value).fold(1e-9, f64::max);
        let _ = writeln!(body, "<text x=\"20\" y=\"{:.0}\" font-weight=\"600\">{name}</text>", top + 16.0);
        top += 26.0;
        for stage in stages {
            let (value, length) = (value(stage), value(stage) / most * SPAN);
            let _ = writeln!(
                body,
                "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{} clients</text><rect x=\"{LEFT}\" \
                 y=\"{top:.0}\" width=\"{length:.1}\" height=\"16\" rx=\"2\" fill=\"{colour}\"/><text \
                 x=\"{:.1}\" y=\"{:.0}\">{value:.1}</text>",
                LEFT - 10.0,
                top + 13.0,
                stage.clients,
                LEFT + length + 8.0,
                top + 13.0
            );
            top += STEP;
        }
        top += 12.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top:.0}\" width=\"{WIDTH}\" \
         height=\"{top:.0}\" font-family=\"system-ui, 'DejaVu Sans', sans-serif\" font-size=\"13\" \
         fill=\"#1f2937\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n<text x=\"20\" \
         y=\"34\" font-size=\"18\" font-weight=\"600\">{title}</text>\n{body}</svg>\n"
    )
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
