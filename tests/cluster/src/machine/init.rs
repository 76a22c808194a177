//! The first process of a machine: reaps what is left to it, and ends with the process that made the machine
//! where it shall.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::{mounts, spec};

/// Runs until it is killed, or its input ends.
pub(super) fn run(path: &Path) -> Result<ExitCode> {
    let spec = spec::read(path)?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    let children = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    mounts::processes()?;
    // For the process that started this one; later it is not read.
    std::io::stdout().write_all(b"ready\n").context("failed to report that the machine is ready")?;

    let input = std::io::stdin();
    loop {
        let interest = if spec.detached { PollFlags::empty() } else { PollFlags::POLLIN };
        let mut events =
            [PollFd::new(children.as_fd(), PollFlags::POLLIN), PollFd::new(input.as_fd(), interest)];
        match poll(&mut events, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("failed to wait"),
        }
        let over = events[1].revents().is_some_and(|it| it.contains(PollFlags::POLLHUP));
        if over && !spec.detached {
            return Ok(ExitCode::SUCCESS);
        }
        while let Ok(Some(_)) = children.read_signal() {}
        // Everything that has no parent left in this namespace is ours.
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }
}
