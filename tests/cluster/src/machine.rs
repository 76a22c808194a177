//! A machine: a set of namespaces with an init of their own, so that killing that one process ends everything
//! in them.
//!
//! [`Machine`] makes them; `inside` runs in the new namespaces, as the program
//! `ambit-cluster-machine`.

mod cgroup;
mod enter;
mod init;
mod inside;
mod mounts;
mod process;
mod spec;
mod sys;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

pub(crate) use process::Process;
pub(crate) use spec::Spec;

/// One machine. Its files are in `spec.folder`.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) spec: Spec,
    /// The init ends when this is closed.
    alive: Mutex<Option<ChildStdin>>,
}

impl Machine {
    pub(crate) fn new(spec: Spec) -> Self {
        Self { spec, alive: Mutex::new(None) }
    }

    /// Makes its namespaces and waits until its init has mounted its file system.
    pub(crate) fn boot(&self) -> Result<()> {
        let Spec { name, folder, helper, detached, .. } = &self.spec;
        std::fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
        cgroup::make(&self.spec.cgroup)?;
        let description = folder.join("spec.json");
        std::fs::write(&description, serde_json::to_vec_pretty(&self.spec)?)?;
        let log = folder.join("init.log");
        let mut command = Command::new(helper);
        command.arg("start").arg(&description).stderr(File::create(&log)?);
        command.stdin(if *detached { Stdio::null() } else { Stdio::piped() }).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("failed to start {}", helper.display()))?;
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = child.stdin.take();
        let output = child.wait_with_output()?;
        let errors = std::fs::read_to_string(&log).unwrap_or_default();
        ensure!(output.status.success(), "machine {name}: {}", errors.trim_end());
        remember(&output.stdout, &self.pid_file())
            .with_context(|| format!("machine {name} has ended: {errors}"))
    }

    /// Ends everything in it, as pulling the plug would. What its folder holds stays.
    pub(crate) fn kill(&self) -> Result<()> {
        if let Some(init) = Process::read(&self.pid_file())? {
            init.kill()?;
        }
        cgroup::remove(&self.spec.cgroup)?;
        drop(self.alive.lock().unwrap_or_else(PoisonError::into_inner).take());
        Ok(())
    }

    /// The process id of its init.
    pub(crate) fn pid(&self) -> Result<i32> {
        let init = Process::read(&self.pid_file())?.filter(Process::alive);
        Ok(init.with_context(|| format!("machine {} is not up", self.spec.name))?.pid)
    }

    fn pid_file(&self) -> PathBuf {
        self.spec.folder.join("init.pid")
    }

    /// A command that runs in all its namespaces.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.spec.helper);
        command.arg("enter").arg(&self.spec.folder).arg("--").arg(program).args(arguments);
        command
    }

    /// Starts a program that stays; its output goes to a log.
    pub(crate) fn serve(&self, name: &str, command: &[String], path: &Path) -> Result<()> {
        let mut start = Command::new(&self.spec.helper);
        start.arg("serve").arg(&self.spec.folder).arg(name).arg("--").args(command);
        let inherited = std::env::var("PATH").unwrap_or_default();
        start.env("PATH", format!("{}:{inherited}", path.display()));
        let output = start.stdin(Stdio::null()).output()?;
        ensure!(
            output.status.success(),
            "{name} on {}: {}",
            self.spec.name,
            String::from_utf8_lossy(&output.stderr)
        );
        remember(&output.stdout, &self.service_file(name))
            .with_context(|| format!("{name} on {} has ended:\n{}", self.spec.name, self.last_words(name)))
    }

    /// A program started with [`Machine::serve`].
    pub(crate) fn service(&self, name: &str) -> Result<Option<Process>> {
        Process::read(&self.service_file(name))
    }

    fn service_file(&self, name: &str) -> PathBuf {
        self.spec.folder.join(format!("{name}.pid"))
    }

    /// The end of a service's log.
    pub(crate) fn last_words(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.spec.folder.join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Processor time that it has used, in seconds, and the memory it holds, in bytes.
    pub(crate) fn usage(&self) -> Result<(f64, u64)> {
        cgroup::usage(&self.spec.cgroup)
    }
}

/// Removes what a machine with this group left, whatever else is known of it.
pub(crate) fn sweep(group: &str) -> Result<()> {
    cgroup::remove(group)
}

/// The program `ambit-cluster-machine`.
pub(crate) fn program(arguments: &[OsString]) -> ExitCode {
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(125)
        }
    }
}

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    ensure!(words.len() == arguments.len(), "arguments that are not UTF-8");
    match words.as_slice() {
        ["start", spec] => inside::start(Path::new(spec)),
        ["init", spec] => init::run(Path::new(spec)),
        ["enter", folder, "--", program, rest @ ..] => enter::run(Path::new(folder), program, rest),
        ["serve", folder, name, "--", program, rest @ ..] => {
            enter::serve(Path::new(folder), name, program, rest)
        }
        _ => anyhow::bail!("ambit-cluster-machine is started by ambit-cluster only"),
    }
}

/// Writes down the process whose number a helper has printed.
fn remember(printed: &[u8], file: &Path) -> Result<()> {
    let pid = String::from_utf8_lossy(printed).trim().parse().context("failed to parse a process number")?;
    Process::of(pid)?.write(file)
}
