//! Where the daemons spend their time: `perf` samples them while a load runs ([`Recording`]).
//!
//! Virtual machines often have no counters of the processor's; the kernel's clock does without.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ambit_harness::eventually;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::loads::Load;
use super::system::System;
use crate::build;

/// How often a second.
const FREQUENCY: &str = "997";

/// A recording under way; killed if it is dropped before its end.
#[derive(Debug)]
pub(super) struct Recording {
    perf: Child,
    data: PathBuf,
}

impl Recording {
    /// Starts; none where there is no daemon.
    pub(super) fn start(daemons: &[u32], system: System, load: Load) -> Result<Option<Self>> {
        if daemons.is_empty() {
            return Ok(None);
        }
        let data = build::target().join("bench").join(format!("{}-{}.perf", system.name(), load.name()));
        let processes: Vec<String> = daemons.iter().map(u32::to_string).collect();
        let mut perf = Command::new("perf");
        perf.args(["record", "--quiet", "--event", "cpu-clock", "--freq", FREQUENCY, "-g", "--output"])
            .arg(&data);
        perf.args(["--pid", &processes.join(",")]).stdin(Stdio::null()).stdout(Stdio::null());
        if data.exists() {
            std::fs::remove_file(&data).with_context(|| format!("failed to remove {}", data.display()))?;
        }
        let recording = Self { perf: perf.spawn().context("failed to start perf")?, data };
        // It writes its head when it has found the processes.
        eventually("perf records", || {
            let size = std::fs::metadata(&recording.data).context("perf has written nothing")?.len();
            ensure!(size > 0, "perf has written nothing");
            Ok(())
        })?;
        Ok(Some(recording))
    }

    /// Ends it and writes the hot lists beside its data: by function, and by path into the kernel.
    pub(super) fn finish(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.perf.id())?), Signal::SIGINT).context("failed to end perf")?;
        // It ends by the signal that it was sent, once everything is written.
        self.perf.wait().context("failed to wait for perf")?;
        let flat =
            ["--no-children", "--sort", "comm,dso,symbol", "--call-graph", "none", "--percent-limit", "0.3"];
        let callers = ["--children", "--sort", "symbol", "--call-graph", "none", "--percent-limit", "1"];
        list(&self.data, &self.data.with_extension("flat.txt"), &flat)?;
        list(&self.data, &self.data.with_extension("inclusive.txt"), &callers)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ended = self.perf.kill();
        let _ended = self.perf.wait();
    }
}

fn list(data: &Path, to: &Path, arguments: &[&str]) -> Result<()> {
    let mut report = Command::new("perf");
    report.args(["report", "--stdio", "--quiet", "--input"]).arg(data).args(arguments);
    let output =
        report.stdin(Stdio::null()).stderr(Stdio::null()).output().context("failed to run perf report")?;
    ensure!(
        output.status.success() && !output.stdout.is_empty(),
        "perf report said nothing about {}",
        data.display()
    );
    std::fs::write(to, output.stdout).with_context(|| format!("failed to write {}", to.display()))?;
    build::say(&format!("hot list: {}", to.display()));
    Ok(())
}
