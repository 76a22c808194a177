//! Where things are, and cargo called with this workspace's settings.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// The workspace's root folder.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies in the workspace").to_path_buf()
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The folder with the binaries of the development profile.
pub(crate) fn binaries() -> PathBuf {
    built("debug")
}

/// The folder with the binaries of a profile: cargo builds for a named target here (.cargo/config.toml).
pub(crate) fn built(profile: &str) -> PathBuf {
    target().join(env!("AMBIT_TARGET")).join(profile)
}

/// The cargo that runs us, in the workspace's root.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments);
    command
}

/// Every program the suites and the demo start. Long on a fresh machine: cargo shows its own progress.
pub(crate) fn programs() -> Result<()> {
    let mut command = cargo(&["build", "--workspace", "--bins", "--exclude", "xtask"]);
    step("building ztunnel, controller and the test programs", &mut command)
}

/// Every program and every test, in one selection: building the programs alone, then the tests with their
/// features of dependencies (tokio's `test-util`), would compile nearly everything twice.
pub(crate) fn everything() -> Result<()> {
    let mut command = cargo(&["build", "--workspace", "--all-targets"]);
    step("building programs and tests", &mut command)
}

/// Runs one step of the work, says what it is and how long it took, fails when it fails.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<()> {
    say(what);
    let start = Instant::now();
    let status = status(command)?;
    ensure!(status.success(), "{what}: {} ended with {status}", command.get_program().display());
    say(&format!("{what}: done in {} s", start.elapsed().as_secs()));
    Ok(())
}

/// Runs a command to its end with our own terminal.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    let program = command.get_program().to_owned();
    command.status().with_context(|| format!("failed to start {}", program.display()))
}

/// One line of progress.
pub(crate) fn say(line: &str) {
    eprintln!("\x1b[1;36m▸\x1b[0m {line}");
}
