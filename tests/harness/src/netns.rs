//! Network namespaces: made with `ip netns`, entered with `setns` by one thread or one child.
//!
//! Never through `ip netns exec`: that remounts /sys and hides the cgroups that the programs are attached to.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::sys;

/// Where iproute2 keeps names of network namespaces.
pub(crate) const NAMES: &str = "/run/netns";

/// A named network namespace; cheap to clone. Dropping it does not remove the name: the janitor does.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    file: Arc<File>,
}

impl Netns {
    /// Makes a new, empty namespace.
    pub fn create(name: &str) -> Result<Self> {
        ip(None, &format!("netns add {name}\n"))?;
        Self::open(name)
    }

    /// Opens a namespace that exists.
    pub fn open(name: &str) -> Result<Self> {
        let path = PathBuf::from(NAMES).join(name);
        let file = File::open(&path).with_context(|| format!("failed to open {}", path.display()))?;
        Ok(Self { name: name.into(), file: Arc::new(file) })
    }

    /// Opens a namespace that exists already, as `/proc/PID/ns/net`, and shows it as `name`.
    pub fn at(path: &Path, name: &str) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
        Ok(Self { name: name.into(), file: Arc::new(file) })
    }

    /// The name as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets that it opens stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.fd(), CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("failed to enter the namespace {}", self.name))?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        sys::run_inside(&mut command, Arc::clone(&self.file));
        command
    }

    /// Runs a batch of `ip` commands inside the namespace, one a line.
    pub fn ip(&self, batch: &str) -> Result<()> {
        ip(Some(&self.name), batch)
    }

    /// Writes settings below /proc/sys/net, which show the namespace of the process that opens them.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                let path = format!("/proc/sys/net/{key}");
                std::fs::write(&path, value).with_context(|| format!("failed to write {path}"))?;
            }
            Ok(())
        })?
    }
}

/// Runs `ip -batch`, in a namespace or outside.
fn ip(netns: Option<&str>, batch: &str) -> Result<()> {
    use std::io::Write as _;
    let mut command = Command::new("ip");
    if let Some(name) = netns {
        command.args(["-n", name]);
    }
    command.args(["-batch", "-"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::piped());
    let mut child = command.spawn().context("failed to start `ip` (package iproute2)")?;
    child
        .stdin
        .take()
        .context("ip has no input")?
        .write_all(batch.as_bytes())
        .context("failed to write to ip")?;
    let output = child.wait_with_output().context("failed to wait for ip")?;
    if !output.status.success() {
        bail!(
            "ip{}: {}in: {batch}",
            netns.map(|n| format!(" -n {n}")).unwrap_or_default(),
            text(&output.stderr)
        );
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
