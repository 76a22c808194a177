//! Figures as medians with their spread and their ratio to plain, as a table for people and rows for programs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::loads::Better;

/// Above this spread of plain TCP's own figures, (max − min) ÷ median, ratios of this run say little.
const NOISY: f64 = 0.25;

/// All figures of a run.
#[derive(Debug, Default)]
pub(super) struct Report {
    series: Vec<Series>,
}

#[derive(Debug)]
struct Series {
    system: String,
    metric: String,
    unit: String,
    better: Option<Better>,
    values: Vec<f64>,
}

/// One row of `report.json`.
#[derive(Debug, Serialize)]
struct Row<'a> {
    system: &'a str,
    metric: &'a str,
    unit: &'a str,
    value: f64,
    min: f64,
    max: f64,
    ratio_to_plain: Option<f64>,
}

impl Report {
    /// One more value of a figure that plain has too.
    pub(super) fn add(&mut self, system: &str, metric: &str, unit: &str, better: Better, value: f64) {
        let known = self.series.iter_mut().find(|series| series.system == system && series.metric == metric);
        if let Some(series) = known {
            series.values.push(value);
            return;
        }
        self.push(system, metric, unit, Some(better), value);
    }

    /// A figure that has no plain counterpart.
    pub(super) fn alone(&mut self, system: &str, metric: &str, unit: &str, value: f64) {
        self.push(system, metric, unit, None, value);
    }

    fn push(&mut self, system: &str, metric: &str, unit: &str, better: Option<Better>, value: f64) {
        let [system, metric, unit] = [system, metric, unit].map(str::to_owned);
        self.series.push(Series { system, metric, unit, better, values: vec![value] });
    }

    /// Writes `report.md` and `report.json` into a folder and prints the table.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let rows: Vec<Row<'_>> = self.series.iter().map(|series| self.row(series)).collect();
        let text = self.table(&rows);
        std::fs::write(folder.join("report.json"), serde_json::to_vec_pretty(&rows)?)?;
        std::fs::write(folder.join("report.md"), &text)?;
        println!("{text}\n{}", folder.join("report.md").display());
        Ok(())
    }

    fn row<'a>(&self, series: &'a Series) -> Row<'a> {
        let [min, value, max] = spread(&series.values);
        let plain = self.series.iter().find(|other| other.system == "plain" && other.metric == series.metric);
        let ratio_to_plain = plain.map(|plain| value / spread(&plain.values)[1]);
        Row {
            system: &series.system,
            metric: &series.metric,
            unit: &series.unit,
            value,
            min,
            max,
            ratio_to_plain,
        }
    }

    fn table(&self, rows: &[Row<'_>]) -> String {
        let mut out = String::from(
            "| metric | system | median | min – max | unit | ratio to plain |\n|---|---|---|---|---|---|\n",
        );
        for row in rows {
            let ratio = row.ratio_to_plain.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
            let _ = writeln!(
                out,
                "| {} | {} | {:.1} | {:.1} – {:.1} | {} | {ratio} |",
                row.metric, row.system, row.value, row.min, row.max, row.unit
            );
        }
        let noisy = self.series.iter().filter(|series| series.system == "plain").filter(|series| {
            let [min, median, max] = spread(&series.values);
            (max - min) / median > NOISY
        });
        for series in noisy {
            let _ = writeln!(
                out,
                "\nThe machine was too noisy for \"{}\": plain alone varied by more than a quarter.",
                series.metric
            );
        }
        if self.series.iter().any(|series| series.better == Some(Better::Lower)) {
            out.push_str("\nFor round trips a lower ratio is better, for everything else a higher one.\n");
        }
        out
    }
}

/// Least, median, greatest.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]]
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn spreads() {
        let rows = [
            ("one value is all three", &[2.0][..], [2.0, 2.0, 2.0]),
            ("the median of three, unsorted", &[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]),
        ];
        for (name, values, expected) in rows {
            assert!(spread(values).iter().zip(expected).all(|(a, b)| (a - b).abs() < f64::EPSILON), "{name}");
        }
    }
}
