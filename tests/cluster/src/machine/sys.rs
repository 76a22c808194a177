//! The system calls that have no safe wrapper: dying with one's parent.
#![expect(unsafe_code, reason = "a thin wrapper around system calls")]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Makes the command's process be killed when the process that starts it ends.
pub(super) fn die_with_parent(command: &mut Command) {
    let ask = || nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(io::Error::from);
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe and allocates nothing.
    unsafe { command.pre_exec(ask) };
}
