//! Making a machine's namespaces and starting its init.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};

use super::{enter, mounts, spec};

/// Settings of the kernel in the machine's network namespace; what it lacks is left out.
const SYSCTLS: [(&str, &str); 8] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // Addresses are unique here: duplicate address detection would only cost time.
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];

/// Makes the namespaces of the machine described in this file; prints the number of its init when that is
/// ready.
pub(super) fn start(path: &Path) -> Result<ExitCode> {
    let spec = spec::read(path)?;
    // Ctrl-C in the terminal is for the process that started this one.
    nix::unistd::setsid().context("failed to leave the session")?;
    enter::join_groups(&spec.cgroup)?;
    let kinds = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWPID;
    unshare(kinds).context("failed to make namespaces")?;
    std::fs::write("/proc/sys/kernel/hostname", &spec.name).context("failed to set the host name")?;
    for (name, value) in SYSCTLS {
        let file = Path::new("/proc/sys").join(name);
        if file.exists() {
            std::fs::write(&file, value).with_context(|| format!("failed to set {}", file.display()))?;
        }
    }
    // The file system becomes the machine's under our feet: the init is started from what we are.
    let mut command = Command::new(&spec.helper);
    command.arg("init").arg(path).stdout(Stdio::piped()).current_dir("/");
    mounts::make(&spec)?;
    let mut init = command.spawn().context("failed to start the init")?;
    let mut line = String::new();
    BufReader::new(init.stdout.take().context("the init has no output")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "the init failed");
    // As the host counts: only children are in the machine's process namespace.
    println!("{}", init.id());
    Ok(ExitCode::SUCCESS)
}
