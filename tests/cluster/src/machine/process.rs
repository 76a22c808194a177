//! Processes that are remembered in files: a number alone may meanwhile be another process's.

use std::path::Path;
use std::time::Duration;

use ambit_harness::within;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process by its number and when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    started: u64,
}

impl Process {
    /// The process that has this number now.
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let started = started(pid)?.with_context(|| format!("process {pid} has ended"))?;
        Ok(Self { pid, started })
    }

    /// What [`Process::write`] wrote; none where there is no such file.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        let Ok(text) = std::fs::read_to_string(path) else { return Ok(None) };
        let Some((pid, started)) = text.trim().split_once(' ') else { return Ok(None) };
        Ok(Some(Self { pid: pid.parse()?, started: started.parse()? }))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = format!("{} {}\n", self.pid, self.started);
        std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
    }

    pub(crate) fn alive(&self) -> bool {
        started(self.pid).ok().flatten() == Some(self.started)
    }

    /// Asks it to end, kills it if it does not within the grace period, waits until it is gone.
    pub(crate) fn end(&self, grace: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.gone(grace).is_ok() { Ok(()) } else { self.kill() }
    }

    /// Kills it and waits until it is gone; the init of a namespace takes all the namespace's processes with
    /// it.
    pub(crate) fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.gone(Duration::from_secs(30))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        if !self.alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("failed to signal {}", self.pid)),
        }
    }

    fn gone(&self, grace: Duration) -> Result<()> {
        within(grace, "a process ends", || {
            anyhow::ensure!(!self.alive(), "{} is alive", self.pid);
            Ok(())
        })
    }
}

/// When a process started, in ticks since boot; none when it is gone, or only its parent has not noticed yet.
fn started(pid: i32) -> Result<Option<u64>> {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return Ok(None) };
    // The second field is the name in brackets, which may itself hold blanks and brackets.
    let (_, rest) = text.rsplit_once(')').context("a process without a name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return Ok(None);
    }
    Ok(Some(fields.get(19).context("a process without a start")?.parse()?))
}
