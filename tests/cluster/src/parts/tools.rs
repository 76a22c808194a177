//! Steps of building the parts: programs that are run, folders, progress.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// A program on PATH.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

/// An empty folder of this name.
pub(super) fn fresh(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    Ok(folder.to_path_buf())
}

/// Runs one step of a build, which must succeed, and says how long it took.
pub(super) fn run(what: &str, command: &mut Command) -> Result<()> {
    say(what);
    let started = Instant::now();
    let status =
        command.status().with_context(|| format!("failed to start {}", command.get_program().display()))?;
    ensure!(status.success(), "{what}: {} ended with {status}", command.get_program().display());
    let seconds = started.elapsed().as_secs();
    if seconds > 1 {
        say(&format!("{what}: done in {seconds} s"));
    }
    Ok(())
}

/// One line of progress.
pub(super) fn say(line: &str) {
    eprintln!("\x1b[1;36m▸\x1b[0m {line}");
}
