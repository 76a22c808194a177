//! Clean-up that outlives its test: a shell script per lab, run by a child that waits for the test to end,
//! however it ends.
//!
//! The child reads a pipe whose other end the test's process holds. When that closes (the lab is dropped, the
//! process exits or is killed) it removes the lab. [`sweep`] runs the scripts of labs whose child died too.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

use crate::wait;

/// Where labs live while they do.
pub(crate) const LABS: &str = "/tmp/ambit-labs";

const SCRIPT: &str = "cleanup.sh";
const ALIVE: &str = "alive";
const KEPT: &str = "kept";

/// The lab's directory and the child that will remove it.
#[derive(Debug)]
pub(crate) struct Janitor {
    pub(crate) dir: PathBuf,
    child: Option<Child>,
    /// Locked while the lab's process lives; the kernel releases it.
    _alive: Flock<File>,
}

impl Janitor {
    /// Makes the directory of a new lab and starts its child.
    pub(crate) fn new(prefix: &str, bin: &Path) -> Result<Self> {
        let dir = Path::new(LABS).join(prefix);
        std::fs::create_dir_all(LABS).with_context(|| format!("failed to create {LABS}"))?;
        std::fs::create_dir(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
        // Others may pass through and see nothing: so tests of refusals meet the daemon and not this folder.
        std::fs::set_permissions(&dir, Permissions::from_mode(0o711))?;
        let mut alive = Flock::lock(File::create(dir.join(ALIVE))?, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .context("failed to lock a new lab")?;
        write!(alive, "{}", std::process::id())?;
        let script = dir.join(SCRIPT);
        std::fs::write(&script, cleanup(prefix, &dir, bin))
            .with_context(|| format!("failed to write {}", script.display()))?;
        let mut command = Command::new("sh");
        command.arg(&script).arg("wait").stdin(Stdio::piped()).stdout(Stdio::null());
        command.stderr(File::create(dir.join("cleanup.log"))?).process_group(0);
        let child = command.spawn().context("failed to start the lab's janitor")?;
        Ok(Self { dir, child: Some(child), _alive: alive })
    }

    /// Leaves the lab running when its process ends.
    pub(crate) fn keep(mut self) -> Result<PathBuf> {
        File::create(self.dir.join(KEPT)).context("failed to mark the lab as kept")?;
        self.end("keep\n")?;
        Ok(self.dir.clone())
    }

    /// Removes the lab and waits until that is done.
    pub(crate) fn remove(&mut self) -> Result<()> {
        self.end("\n")
    }

    fn end(&mut self, word: &str) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.stdin.take().context("the janitor has no input")?.write_all(word.as_bytes())?;
        let status = child.wait().context("failed to wait for the lab's janitor")?;
        ensure!(status.success(), "clean-up of {} failed: {status}", self.dir.display());
        Ok(())
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("{error:#}");
        }
    }
}

/// Whether the lab in a directory belongs to this process.
pub(crate) fn is_ours(dir: &Path) -> bool {
    std::fs::read_to_string(dir.join(ALIVE)).is_ok_and(|owner| owner == std::process::id().to_string())
}

/// Removes what dead labs left, and with `kept` those that were left running on purpose. Returns their names.
pub fn sweep(kept: bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let Ok(entries) = std::fs::read_dir(LABS) else { return Ok(removed) };
    for entry in entries {
        let dir = entry?.path();
        let Some(_alive) = orphan(&dir) else { continue };
        if dir.join(KEPT).exists() && !kept {
            continue;
        }
        // Its own janitor may be at it this moment.
        let gone =
            || if dir.exists() { Err(anyhow::anyhow!("{} is still there", dir.display())) } else { Ok(()) };
        let grace = if dir.join(KEPT).exists() { Duration::ZERO } else { Duration::from_secs(5) };
        if wait::within(grace, "its janitor removes a dead lab", gone).is_ok() {
            continue;
        }
        let script = dir.join(SCRIPT);
        let status = Command::new("sh").arg(&script).status().context("failed to run a clean-up script")?;
        ensure!(status.success(), "{} failed: {status}", script.display());
        removed.extend(dir.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    Ok(removed)
}

/// The lock of a lab whose process is gone.
fn orphan(dir: &Path) -> Option<Flock<File>> {
    let file = File::options().write(true).open(dir.join(ALIVE)).ok()?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
    // A lab in the making has no script yet.
    dir.join(SCRIPT).exists().then_some(lock)
}

/// What removes a lab: its processes, its programs, its mount, its namespaces, its directory.
fn cleanup(prefix: &str, dir: &Path, bin: &Path) -> String {
    let (dir, bin) = (dir.display(), bin.display());
    format!(
        r#"#!/bin/sh
# Removes the lab {prefix}. With `wait`, first waits until its process is gone.
trap '' INT TERM HUP
if [ "$1" = wait ]; then
    read -r word
    [ "$word" = keep ] && exit 0
fi
failed=0
namespaces() {{ ip netns list | sed -n 's/^\({prefix}-[^ ]*\).*/\1/p'; }}
for netns in $(namespaces); do
    for pid in $(ip netns pids "$netns"); do kill -9 "$pid" 2>/dev/null; done
done
for config in {dir}/node*/ztunnel.yaml; do
    # Without the program that made them (its checkout is gone) the pins go with their file system, and the
    # programs with the pins.
    [ -e "$config" ] && [ -x "{bin}/ztunnel" ] || continue
    "{bin}/ztunnel" detach --config "$config" >&2 || failed=1
done
if [ -d {dir}/bpffs ] && mountpoint -q {dir}/bpffs; then umount -l {dir}/bpffs || failed=1; fi
for netns in $(namespaces); do ip netns del "$netns" || failed=1; done
if [ "$failed" = 0 ]; then rm -rf {dir}
else echo "clean-up of {prefix} failed:" >&2; cat {dir}/cleanup.log >&2; fi
exit $failed
"#
    )
}
