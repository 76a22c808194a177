//! A daemon of the lab: a real process with its log, to be started, stopped, killed and started again.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;
use crate::{http, wait};

/// A program with its configuration file, in a namespace. Its output is appended to its log, also across
/// restarts.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    netns: Netns,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Daemon {
    pub(crate) fn new(name: &str, netns: &Netns, program: PathBuf, config: PathBuf, log: PathBuf) -> Self {
        Self { name: name.to_owned(), netns: netns.clone(), program, config, log, child: Mutex::new(None) }
    }

    /// Another process of the same program, in the same namespace and with the same log.
    pub(crate) fn beside(&self, name: &str, config: PathBuf) -> Self {
        Self::new(name, &self.netns, self.program.clone(), config, self.log.clone())
    }

    /// `<program> run --config <file>`. Returns when the process exists; it may not be ready yet.
    pub fn spawn(&self) -> Result<()> {
        let mut child = self.child();
        ensure!(child.is_none(), "{} runs already", self.name);
        let log = File::options().append(true).create(true).open(&self.log)?;
        let mut command = self.netns.command(&self.program);
        command.arg("run").arg("--config").arg(&self.config);
        // A group of its own, so that Ctrl-C in a terminal leaves the order of ending to the lab.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        *child =
            Some(command.spawn().with_context(|| format!("failed to start {}", self.program.display()))?);
        Ok(())
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// An error when it is not running, so that no test waits for a dead daemon.
    pub fn check(&self) -> Result<()> {
        match self.child().as_mut() {
            None => bail!("{} is not running", self.name),
            Some(child) => match child.try_wait()? {
                None => Ok(()),
                Some(status) => bail!("{} ended: {status}\n{}", self.name, self.tail(40)),
            },
        }
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&self) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    /// SIGKILL: it ends without a clean-up.
    pub fn kill(&self) -> Result<ExitStatus> {
        self.end(Signal::SIGKILL)
    }

    /// Sends a signal and returns at once.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} is not running", self.name))?;
        let pid = Pid::from_raw(i32::try_from(pid)?);
        kill(pid, signal).with_context(|| format!("failed to send {signal} to {}", self.name))
    }

    /// Waits for its end.
    pub fn wait(&self) -> Result<ExitStatus> {
        let mut slot = self.child();
        let child = slot.as_mut().with_context(|| format!("{} is not running", self.name))?;
        let status = wait::eventually(&format!("{} ends", self.name), || {
            child.try_wait()?.with_context(|| format!("{} still runs", self.name))
        })?;
        *slot = None;
        Ok(status)
    }

    fn end(&self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait()
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        self.log_since(0)
    }

    /// `GET` on one of its ports.
    pub fn get(&self, port: u16, path: &str) -> Result<String> {
        http::get(&self.netns, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), path)?.ok()
    }

    /// How much it has written so far: a mark for [`Daemon::log_since`].
    pub fn log_mark(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |metadata| metadata.len())
    }

    /// What it has written since a mark.
    pub fn log_since(&self, mark: u64) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(mark))?;
            file.read_to_end(&mut text)
        });
        match read {
            Ok(_) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("failed to read {}: {error}", self.log.display()),
        }
    }

    /// The last lines of its log.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// Memory in use, in KiB (resident set).
    pub fn memory(&self) -> Result<u64> {
        self.status("VmRSS:")
    }

    /// Memory of its own, in KiB: resident, and not the content of a file. Its program's pages come in
    /// whenever they are first used.
    pub fn heap(&self) -> Result<u64> {
        self.status("RssAnon:")
    }

    /// How many threads it has.
    pub fn threads(&self) -> Result<u64> {
        self.status("Threads:")
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> Result<u64> {
        let pid = self.pid().with_context(|| format!("{} is not running", self.name))?;
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).context("failed to list its descriptors")?;
        Ok(u64::try_from(open.count())?)
    }

    /// A number of /proc/PID/status.
    fn status(&self, field: &str) -> Result<u64> {
        let pid = self.pid().with_context(|| format!("{} is not running", self.name))?;
        let status =
            std::fs::read_to_string(format!("/proc/{pid}/status")).context("failed to read its status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let line = line.with_context(|| format!("no {field}"))?;
        line.split_whitespace().next().context("no number")?.parse().context("failed to parse the number")
    }

    /// The command for other verbs of the program with the same configuration, in the same namespace.
    pub fn command(&self, verb: &str) -> std::process::Command {
        let mut command = self.netns.command(&self.program);
        command.arg(verb).arg("--config").arg(&self.config);
        command
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last lines of a file.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
