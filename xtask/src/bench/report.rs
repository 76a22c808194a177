//! Figures as medians with their spread and their ratio to plain, as tables for people and rows for programs.
//!
//! A ratio is taken within each round, of two runs that were seconds apart; the median of these ratios is
//! reported. It moves less with the machine than the ratio of two medians.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use super::chart;
use super::cpu::Used;
use super::expected::{self, Beside, Expected, Of};
use super::loads::{self, Better, Figure};
use super::row::{Row, Spread};
use super::system::System;
use crate::build;

/// Above this spread of plain TCP's own figures, (max − min) ÷ median, ratios of this run say little.
const NOISY_SPREAD: f64 = 0.15;
/// Above this share of CPU time used by other processes, likewise.
const NOISY_OTHERS: f64 = 0.05;
/// What the machine's noise is judged by.
const STEADY: [&str; 5] =
    [loads::THROUGHPUT, loads::REQUESTS, loads::CONNECTIONS, loads::ROUND_TRIP, loads::PROXIED];

/// All figures of a run.
#[derive(Debug)]
pub(super) struct Report {
    rounds: u32,
    profiled: bool,
    series: Vec<Series>,
    absent: BTreeMap<System, String>,
    /// CPU time while loads ran.
    pub(super) used: Used,
}

#[derive(Debug)]
struct Series {
    system: System,
    metric: &'static str,
    unit: &'static str,
    better: Better,
    /// By round.
    values: BTreeMap<u32, f64>,
}

/// One expectation and what became of it.
#[derive(Debug, Serialize)]
struct Verdict {
    system: &'static str,
    metric: &'static str,
    of: &'static str,
    measured: Option<f64>,
    expected: String,
    reached: Option<bool>,
    aim: String,
    aim_reached: Option<bool>,
}

/// `report.json`.
#[derive(Serialize)]
struct Document<'a> {
    commit: &'a str,
    machine: &'a str,
    rounds: u32,
    too_noisy: &'a [String],
    absent: BTreeMap<&'static str, &'a str>,
    rows: &'a [Row],
    expected: &'a [Verdict],
}

impl Report {
    pub(super) fn new(rounds: u32, profiled: bool) -> Self {
        Self { rounds, profiled, series: Vec::new(), absent: BTreeMap::new(), used: Used::default() }
    }

    /// One more value.
    pub(super) fn add(&mut self, system: System, round: u32, figure: Figure) {
        let Figure { metric, unit, better, value } = figure;
        let known = self.series.iter_mut().find(|series| series.system == system && series.metric == metric);
        if let Some(series) = known {
            series.values.insert(round, value);
        } else {
            let values = BTreeMap::from([(round, value)]);
            self.series.push(Series { system, metric, unit, better, values });
        }
    }

    /// A system was not what it is taken for: nothing of it is reported but this.
    pub(super) fn absent(&mut self, system: System, why: &str) {
        self.series.retain(|series| series.system != system);
        self.absent.insert(system, why.to_owned());
    }

    pub(super) fn is_absent(&self, system: System) -> bool {
        self.absent.contains_key(&system)
    }

    /// Writes `report.md`, `report.json` and `chart.svg` into a folder and prints the tables.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let rows: Vec<Row> = self.in_order().map(|series| self.row(series)).collect();
        let verdicts = self.verdicts();
        let noise = self.noise();
        let (commit, machine) = (commit(), machine());
        let document = Document {
            commit: &commit,
            machine: &machine,
            rounds: self.rounds,
            too_noisy: &noise,
            absent: self.absent.iter().map(|(system, why)| (system.name(), why.as_str())).collect(),
            rows: &rows,
            expected: &verdicts,
        };
        let text = self.text(&document);
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
        };
        write("report.json", &serde_json::to_string_pretty(&document)?)?;
        write("report.md", &text)?;
        write("chart.svg", &chart::draw(&rows, &expected::all()))?;
        println!("{text}");
        build::say(&format!("{0}/report.md, {0}/report.json, {0}/chart.svg", folder.display()));
        Ok(())
    }

    /// By metric, and the systems of each in their order.
    fn in_order(&self) -> impl Iterator<Item = &Series> {
        let mut metrics: Vec<&str> = Vec::new();
        for series in &self.series {
            if !metrics.contains(&series.metric) {
                metrics.push(series.metric);
            }
        }
        metrics.into_iter().flat_map(move |metric| {
            System::ALL.into_iter().filter_map(move |system| self.find(system, metric))
        })
    }

    fn find(&self, system: System, metric: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.system == system && series.metric == metric)
    }

    fn row(&self, series: &Series) -> Row {
        let Spread { min, median, max } = spread(series.values.values().copied());
        Row {
            system: series.system.name(),
            metric: series.metric,
            value: median,
            unit: series.unit,
            min,
            max,
            spread: (max - min) / median,
            better: match series.better {
                Better::Higher => "higher",
                Better::Lower => "lower",
            },
            ratio_to_plain: self.ratio(series),
        }
    }

    fn ratio(&self, series: &Series) -> Option<Spread> {
        ratio(series, self.find(series.system.baseline(), series.metric)?)
    }

    fn verdicts(&self) -> Vec<Verdict> {
        let of_all = expected::all().into_iter().map(|expected| self.verdict(&expected));
        of_all.chain(expected::beside().iter().map(|expected| self.beside(expected))).collect()
    }

    fn verdict(&self, expected: &Expected) -> Verdict {
        let series = self.find(expected.system, expected.metric);
        let (of, measured) = match expected.of {
            Of::Ratio => ("ratio", series.and_then(|series| self.ratio(series)).map(|ratio| ratio.median)),
            Of::Value => (
                series.map_or("", |series| series.unit),
                series.map(|series| spread(series.values.values().copied()).median),
            ),
        };
        Verdict {
            system: expected.system.name(),
            metric: expected.metric,
            of,
            measured,
            expected: expected.floor.map_or_else(|| "–".to_owned(), |floor| floor.to_string()),
            reached: measured.zip(expected.floor).map(|(measured, floor)| floor.holds(measured)),
            aim: expected.aim.to_string(),
            aim_reached: measured.map(|measured| expected.aim.holds(measured)),
        }
    }

    fn beside(&self, expected: &Beside) -> Verdict {
        let Beside { system, metric, other, of, floor, aim } = *expected;
        let series = self.find(system, metric).zip(self.find(other, metric));
        let ratio = series.and_then(|(own, other)| ratio(own, other)).map(|ratio| ratio.median);
        Verdict {
            system: system.name(),
            metric,
            of,
            measured: ratio,
            expected: floor.map_or_else(|| "–".to_owned(), |floor| floor.to_string()),
            reached: ratio.zip(floor).map(|(ratio, floor)| floor.holds(ratio)),
            aim: aim.to_string(),
            aim_reached: ratio.map(|ratio| aim.holds(ratio)),
        }
    }

    /// Why this run's figures should not be believed.
    fn noise(&self) -> Vec<String> {
        let plain =
            |series: &&Series| series.system.baseline() == series.system && STEADY.contains(&series.metric);
        let mut reasons: Vec<String> = self
            .series
            .iter()
            .filter(plain)
            .map(|series| self.row(series))
            .filter(|row| row.spread > NOISY_SPREAD)
            .map(|row| {
                format!("{}, {}: {:.0} % between its own runs", row.system, row.metric, row.spread * 100.0)
            })
            .collect();
        let share = self.others();
        if share > NOISY_OTHERS {
            reasons.push(format!("others took {:.0} % of the CPU time while loads ran", share * 100.0));
        }
        if self.profiled {
            reasons.push("perf sampled the daemons".to_owned());
        }
        reasons
    }

    fn others(&self) -> f64 {
        if self.used.available > 0.0 { self.used.others / self.used.available } else { 0.0 }
    }

    fn text(&self, document: &Document<'_>) -> String {
        let mut out = format!(
            "# Ambit beside plain TCP and others\n\nCommit {}, {}, medians of {} rounds.\n",
            document.commit, document.machine, document.rounds
        );
        if document.too_noisy.is_empty() {
            out.push_str("The machine was quiet.");
        } else {
            let _ = write!(
                out,
                "**The machine was too noisy to believe all of this:** {}.",
                document.too_noisy.join("; ")
            );
        }
        let _ = writeln!(
            out,
            " Others took {:.1} % of the CPU time while loads ran; {:.1} % went to soft interrupts, as far \
             as the kernel's ticks tell.\n",
            self.others() * 100.0,
            if self.used.available > 0.0 { self.used.softirq / self.used.available * 100.0 } else { 0.0 },
        );
        for (system, why) in &document.absent {
            let _ = writeln!(out, "**Not measured: {system}.** {why}\n");
        }
        out.push_str(SYSTEMS);
        out.push_str(
            "\n## Expected\n\n| system | figure | measured | expected | | aim | \
             |\n|---|---|---|---|---|---|---|\n",
        );
        for verdict in document.expected {
            let said = |reached: Option<bool>| match reached {
                Some(true) => "reached",
                Some(false) => "**not reached**",
                None => "–",
            };
            let measured = verdict
                .measured
                .map_or_else(|| "–".to_owned(), |value| format!("{} {}", short(value), verdict.of));
            let _ = writeln!(
                out,
                "| {} | {} | {measured} | {} | {} | {} | {} |",
                verdict.system,
                verdict.metric,
                verdict.expected,
                said(verdict.reached),
                verdict.aim,
                said(verdict.aim_reached),
            );
        }
        out.push_str(
            "\n## All figures\n\n| metric | system | median | min – max | unit | ratio to plain | min – max \
             |\n|---|---|---|---|---|---|---|\n",
        );
        for row in document.rows {
            let (ratio, ratios) = row.ratio_to_plain.map_or_else(
                || ("–".to_owned(), String::new()),
                |ratio| (format!("{:.2}", ratio.median), format!("{:.2} – {:.2}", ratio.min, ratio.max)),
            );
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} – {} | {} | {ratio} | {ratios} |",
                row.metric,
                row.system,
                short(row.value),
                short(row.min),
                short(row.max),
                row.unit
            );
        }
        out
    }
}

const SYSTEMS: &str = "\
- **plain**: pods of two nodes without a mesh; client on CPU 0, server on CPU 1. **tunnel**: enrolled pods \
                       of two nodes, a ztunnel on each node's CPU, one worker each. **envoy**: an Envoy in \
                       each pod, on its node's CPU, one worker each, TLS 1.3 with both certificates \
                       checked, a TLS connection for each connection.
- **plain-local**: two pods of one node without a mesh; client on CPU 0, server on CPU 1. **direct**: two \
                       enrolled pods of one node, pinned alike, on the direct path (checked: `/connections` \
                       before, the daemon's counters after each load).
- **http**: client and server on CPU 0, without a proxy. **envoy-http**, **haproxy**, **waypoint**: one HTTP \
                       proxy between them, alone on CPU 1 with one thread, HTTP/1.1 on both sides; \
                       **waypoint** is its code for requests without HBONE, **waypoint-routes** the same \
                       with 5,000 routes. **waypoint-hbone**: a deployed waypoint, alone on CPU 1, the \
                       ztunnels of both sides on CPU 0 too: its CPU time can be compared, its requests/s are \
                       limited by theirs.
- Istio's ztunnel is missing: it is published as a container image only, and none can be had here. \
                       `docs/guide/performance.md` says how to read this.
";

/// A number with three significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The commit that was measured, with a mark if the tree had changes.
fn commit() -> String {
    let output = Command::new("git")
        .current_dir(build::root())
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output();
    let said = output.ok().filter(|output| output.status.success());
    said.map_or_else(
        || "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// Kernel, CPUs, date.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cpus = info.lines().filter(|line| line.starts_with("processor")).count();
    let date = Command::new("date").args(["--utc", "+%Y-%m-%d %H:%M UTC"]).output();
    let date =
        date.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    format!("Linux {}, {cpus} × {}, {date}", kernel.trim(), model.trim_start_matches([' ', '\t', ':']))
}

/// Of one system's figures to another's, of the rounds that both have.
fn ratio(own: &Series, other: &Series) -> Option<Spread> {
    let both = own.values.iter().filter_map(|(round, value)| Some(value / other.values.get(round)?));
    let ratios: Vec<f64> = both.collect();
    (!ratios.is_empty()).then(|| spread(ratios.into_iter()))
}

/// Of at least one value; the median of an even number is the mean of the two in the middle.
fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let (below, above) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    Spread { min: sorted[0], median: f64::midpoint(below, above), max: sorted[sorted.len() - 1] }
}

#[cfg(test)]
mod tests;
