//! `cargo xtask bench`: the same traffic with and without the mesh, in turn, within one run.
//!
//! Machines differ and drift, so every figure is also a ratio to plain TCP of its own round. Node 0 has CPU
//! 0, node 1 has CPU 1; each proxy has one worker. `system` says what is compared, `stage` where it runs,
//! `loads` what is measured, `report` what is made of it. HTTP proxies are compared among each other, in
//! `proxies`.

mod chart;
mod cpu;
mod envoy;
mod expected;
mod loads;
mod profile;
mod proxies;
mod report;
mod row;
mod runs;
mod stage;
mod system;

use std::time::Instant;

use anyhow::{Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{build, ebpf, setup};
use loads::{Better, Figure, Load};
use report::Report;
pub(crate) use runs::Options;
use runs::{add, run_load, weights};
use stage::Stage;
use system::System;

/// Builds the release, lays the lab out, measures, writes `target/bench/report.{md,json}` and `chart.svg`.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure_root("bench")?;
    let systems: Vec<System> =
        System::ALL.into_iter().filter(|s| options.only.is_empty() || options.only.contains(s)).collect();
    for needs in [&ebpf::NEEDS[..], &setup::LAB, &setup::BENCH] {
        setup::ensure(needs)?;
    }
    if systems.contains(&System::Envoy) || systems.contains(&System::EnvoyHttp) {
        setup::ensure(&envoy::NEEDS)?;
    }
    if systems.contains(&System::Haproxy) {
        setup::ensure(&setup::HAPROXY)?;
    }
    if options.profile {
        setup::ensure(&setup::PERF)?;
    }
    allow_many_files()?;
    if !options.no_build {
        ebpf::run(ebpf::Options::default())?;
        let packages = ["ambit-ztunnel", "ambit-controller", "ambit-waypoint"];
        let packages = packages.iter().flat_map(|package| ["--package", package]);
        // The waypoint's example is a proxy for plain HTTP.
        let what = ["build", "--release", "--bins", "--example", "plain"];
        let arguments: Vec<&str> = what.into_iter().chain(packages).collect();
        build::step("building the release", &mut build::cargo(&arguments))?;
    }
    let start = Instant::now();
    let folder = build::target().join("bench");
    std::fs::create_dir_all(&folder)?;
    let mut report = Report::new(options.rounds, options.profile);
    let measured = measure(options, systems, &mut report);
    build::say(&format!("measured for {} s", start.elapsed().as_secs()));
    // What there is, also when a later round failed.
    report.write(&folder)?;
    measured
}

/// One comparison after the other, each in a lab of its own.
fn measure(options: &Options, systems: Vec<System>, report: &mut Report) -> Result<()> {
    let (proxies, tunnels): (Vec<_>, Vec<_>) = systems.into_iter().partition(|it| it.is_of_proxies());
    if !tunnels.is_empty() {
        let mut stage = Stage::start(&tunnels)?;
        let measured = rounds(&mut stage, options, &tunnels, report);
        measured.and(stage.finish())?;
    }
    if proxies.is_empty() { Ok(()) } else { proxies::measure(&proxies, options, report) }
}

fn rounds(stage: &mut Stage, options: &Options, systems: &[System], report: &mut Report) -> Result<()> {
    for round in 1..=options.rounds {
        Bench { stage, options, report, round }.loads(systems)?;
        // The hot lists are not about memory.
        if !options.profile {
            stage.renew()?;
            Bench { stage, options, report, round }.memory()?;
        }
    }
    Ok(())
}

/// One round.
struct Bench<'a> {
    stage: &'a Stage,
    options: &'a Options,
    report: &'a mut Report,
    round: u32,
}

impl Bench<'_> {
    /// Every load on every system in turn, so that a slow minute of the machine hits all alike.
    fn loads(&mut self, systems: &[System]) -> Result<()> {
        for system in systems {
            if !self.report.is_absent(*system) {
                self.warm_up(*system)?;
            }
        }
        for load in loads::ALL {
            for system in systems {
                if !self.report.is_absent(*system) {
                    self.load(*system, load)?;
                }
            }
        }
        Ok(())
    }

    /// The direct path may be switched off, or not there yet: that is a finding, not a failure of the others'
    /// figures.
    fn warm_up(&mut self, system: System) -> Result<()> {
        match self.stage.warm_up(system) {
            Err(error) if system == System::Direct => {
                build::say(&format!("{}: {error:#}", system.name()));
                self.report.absent(system, &format!("{error:#}"));
                Ok(())
            }
            result => result,
        }
    }

    fn load(&mut self, system: System, load: Load) -> Result<()> {
        let daemons = self.stage.daemons(system)?;
        let route = self.stage.route(system);
        let before = self.carried(system)?;
        let (figures, used) = run_load(load, system, (&route, &daemons), self.options)?;
        if !self.was_direct(system, before, load.name())? {
            return Ok(());
        }
        self.add(system, &figures);
        self.report.used += used;
        Ok(())
    }

    /// What of the direct path's traffic the daemon has carried so far; nothing for the others.
    fn carried(&self, system: System) -> Result<f64> {
        if system == System::Direct { self.stage.tunnelled(system) } else { Ok(0.0) }
    }

    /// Whether the daemon has carried nothing more. If it has, the figures are not the direct path's, and
    /// none are reported.
    fn was_direct(&mut self, system: System, before: f64, what: &str) -> Result<bool> {
        let more = self.carried(system)? - before;
        if more > 0.0 {
            let why = format!("{more} connections went through the daemon ({what}).");
            build::say(&format!("{}: {why}", system.name()));
            self.report.absent(system, &why);
        }
        Ok(more <= 0.0)
    }

    /// What the daemons weigh, idle and with many idle connections.
    fn memory(&mut self) -> Result<()> {
        // First what leaves no trace in a daemon's memory, or should.
        for system in [System::Direct, System::Tunnel, System::Envoy] {
            if !self.stage.has(system) || self.report.is_absent(system) {
                continue;
            }
            let daemons = self.stage.daemons(system)?;
            let idle = weights(&daemons)?;
            self.warm_up(system)?;
            if self.report.is_absent(system) {
                continue;
            }
            let before = weights(&daemons)?;
            let carried = self.carried(system)?;
            let held = loads::hold(&self.stage.route(system), self.options.connections)?;
            let after = weights(&daemons)?;
            ensure!(held.len() == self.options.connections, "{} connections were held", held.len());
            if !self.was_direct(system, carried, "idle connections")? {
                continue;
            }
            let connections = cpu::count(held.len() as u64);
            for index in 0..daemons.len() {
                let per_connection = (after[index] - before[index]) / connections * 1e3;
                let lower = |metric, unit, value| Figure { metric, unit, better: Better::Lower, value };
                let mut figures = vec![lower(expected::PER_CONNECTION[index], "KB", per_connection)];
                // Idle, the direct path's daemon is the tunnel's.
                if system != System::Direct {
                    figures.insert(0, lower(expected::IDLE[index], "MB", idle[index]));
                }
                self.add(system, &figures);
            }
        }
        Ok(())
    }

    fn add(&mut self, system: System, figures: &[Figure]) {
        add(self.report, (self.round, self.options.rounds), system, figures);
    }
}

/// Thousands of connections are held open here and in every proxy; they inherit the limit.
fn allow_many_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
