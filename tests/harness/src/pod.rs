//! A pod of the lab: its addresses, and programs that run in it.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::Netns;
use crate::spec::PodSpec;
use crate::{daemon, wait};

/// Where a program runs: a pod, a node or the host outside the cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Place {
    /// The namespace itself.
    pub netns: Netns,
    /// Its addresses.
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// The lab's directory, for logs.
    pub(crate) dir: PathBuf,
    pub(crate) bin: PathBuf,
    pub(crate) started: Arc<AtomicUsize>,
}

/// A pod; its [`Place`] is reached by dereferencing.
#[derive(Clone, Debug)]
pub struct Pod {
    pub spec: PodSpec,
    pub place: Place,
    /// Whether the mesh takes care of it.
    pub enrolled: bool,
}

impl std::ops::Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Place {
    pub(crate) fn new(dir: &Path, bin: &Path, netns: Netns, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        Self { netns, v4, v6, dir: dir.to_owned(), bin: bin.to_owned(), started: Arc::default() }
    }

    /// A command that will run here; programs of this repository are found by their bare name.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let program = program.as_ref();
        let own = self.bin.join(program);
        self.netns.command(if own.is_file() { own.as_os_str() } else { program })
    }

    /// Runs a program to its end; its standard output when it succeeds.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::null());
        let output =
            command.output().with_context(|| format!("failed to run {program} in {}", self.netns.name()))?;
        ensure!(
            output.status.success(),
            "{program} {} in {}: {}: {}{}",
            arguments.join(" "),
            self.netns.name(),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout),
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a program that runs until the returned guard is dropped.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = self.command(program);
        command.args(arguments);
        self.spawn(command)
    }

    /// Starts a prepared command (see [`Place::command`]).
    pub fn spawn(&self, mut command: Command) -> Result<Process> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.dir.join(format!("{}.{number}.log", self.netns.name()));
        let file = File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
        Ok(Process { child, log })
    }

    /// Starts a server and waits until it says that it listens (a line with the word `ready`).
    pub fn serve(&self, program: &str, arguments: &[&str]) -> Result<Process> {
        let mut process = self.start(program, arguments)?;
        process.says("ready")?;
        Ok(process)
    }

    /// Its address of a family.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Runs `work` on a thread inside the namespace: the test itself is the client or server.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns.run(work)
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// A program that was started; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far, both streams.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it has written a line with this text.
    pub fn says(&mut self, text: &str) -> Result<()> {
        wait::eventually(&format!("a program says {text:?}"), || {
            let log = self.log();
            if log.lines().any(|line| line.contains(text)) {
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            anyhow::bail!("it says: {} ({ended:?})", daemon::tail(&self.log, 20))
        })
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        wait::within(deadline, "a program ends", || {
            self.child
                .try_wait()?
                .with_context(|| format!("it runs still; its log: {}", daemon::tail(&self.log, 20)))
        })
    }

    /// Kills it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("failed to kill a program")?;
        self.child.wait().context("failed to wait for a killed program")?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
