//! One run of a load, and what it adds to the report: [`run_load`], [`add`]; the [`Options`] of all.

use anyhow::Result;
use clap::Args;

use super::cpu::{self, Meter, Used};
use super::loads::{Better, Figure, Load};
use super::profile;
use super::report::Report;
use super::system::{Route, System};
use crate::build;

/// How much is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often each load runs on each system; medians are reported.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) rounds: u32,
    /// How long one load runs, in seconds.
    #[arg(long, default_value_t = 4)]
    pub(super) seconds: u32,
    /// Idle connections for the memory figure.
    #[arg(long, default_value_t = 3000)]
    pub(super) connections: usize,
    /// Only these; what is no plain traffic has ratios only if its plain counterpart is there too.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(super) only: Vec<System>,
    /// Take the release build that is there.
    #[arg(long)]
    pub(super) no_build: bool,
    /// Sample the daemons with `perf` while they work, and write hot lists instead of fair figures.
    #[arg(long)]
    pub(super) profile: bool,
}

/// Adds figures to the report, and shows them.
pub(super) fn add(report: &mut Report, (round, rounds): (u32, u32), system: System, figures: &[Figure]) {
    for figure in figures {
        build::say(&format!(
            "round {round} of {rounds}: {}: {}: {:.2} {}",
            system.name(),
            figure.metric,
            figure.value,
            figure.unit
        ));
        report.add(system, round, *figure);
    }
}

/// Runs a load; its figures, the CPU time of each piece of its work among them.
pub(super) fn run_load(
    load: Load,
    system: System,
    (route, daemons): (&Route, &[u32]),
    options: &Options,
) -> Result<(Vec<Figure>, Used)> {
    let profile = options.profile.then(|| profile::Recording::start(daemons, system, load)).transpose()?;
    let meter = Meter::start(daemons)?;
    let (mut figures, work) = load.run(route, options.seconds)?;
    let used = meter.read()?;
    if let Some(recording) = profile.flatten() {
        recording.finish()?;
    }
    if let Some(work) = work {
        let per = |cpu: f64| cpu * work.scale / work.amount;
        let figure = |metric, value| Figure { metric, unit: work.unit, better: Better::Lower, value };
        figures.push(figure(work.everything, per(used.ours)));
        if !daemons.is_empty() {
            figures.push(figure(work.daemons, per(used.daemons)));
        }
    }
    Ok((figures, used))
}

/// Memory of processes in MB (resident set).
pub(super) fn weights(processes: &[u32]) -> Result<Vec<f64>> {
    processes.iter().map(|process| cpu::memory(*process).map(|kib| cpu::count(kib) * 1024.0 / 1e6)).collect()
}
