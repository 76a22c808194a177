//! Running programs in a machine.

use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::process::Process;
use super::{cgroup, spec, sys};

/// Runs a program to its end with our own input and output; killed when we are.
pub(super) fn run(folder: &Path, program: &str, arguments: &[&str]) -> Result<ExitCode> {
    enter(folder)?;
    let mut command = Command::new(program);
    command.args(arguments);
    sys::die_with_parent(&mut command);
    let status = command.status().with_context(|| format!("failed to start {program}"))?;
    let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Starts a program that stays, with its output in a log, and prints its number.
pub(super) fn serve(folder: &Path, name: &str, program: &str, arguments: &[&str]) -> Result<ExitCode> {
    let log = File::options().create(true).append(true).open(folder.join(format!("{name}.log")))?;
    enter(folder)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let child = command.spawn().with_context(|| format!("failed to start {program}"))?;
    // As the host counts: only children are in the machine's process namespace.
    println!("{}", child.id());
    Ok(ExitCode::SUCCESS)
}

/// Joins a machine's groups and namespaces; children are in its process namespace.
fn enter(folder: &Path) -> Result<()> {
    let spec = spec::read(&folder.join("spec.json"))?;
    let init = Process::read(&folder.join("init.pid"))?.filter(Process::alive);
    let init = init.with_context(|| format!("machine {} is not up", spec.name))?;
    let open = |name: &str| File::open(format!("/proc/{}/ns/{name}", init.pid));
    let namespaces = [
        (open("cgroup")?, CloneFlags::CLONE_NEWCGROUP),
        (open("ipc")?, CloneFlags::CLONE_NEWIPC),
        (open("uts")?, CloneFlags::CLONE_NEWUTS),
        (open("net")?, CloneFlags::CLONE_NEWNET),
        (open("pid")?, CloneFlags::CLONE_NEWPID),
        // Last: the paths above are those of our own file system.
        (open("mnt")?, CloneFlags::CLONE_NEWNS),
    ];
    join_groups(&spec.cgroup)?;
    for (namespace, kind) in namespaces {
        setns(namespace, kind).with_context(|| format!("failed to enter {}", spec.name))?;
    }
    Ok(())
}

/// Moves this process into a machine's group, in every hierarchy.
pub(super) fn join_groups(group: &str) -> Result<()> {
    for hierarchy in cgroup::hierarchies()? {
        let file = hierarchy.processes(group);
        std::fs::write(&file, std::process::id().to_string())
            .with_context(|| format!("failed to write {}", file.display()))?;
    }
    Ok(())
}
