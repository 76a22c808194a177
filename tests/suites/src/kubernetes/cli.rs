//! The command line [`ambit`], asked of a cluster.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::Mesh;

/// How `ambit` ended, and what it printed.
#[derive(Debug)]
pub struct Said {
    success: bool,
    /// Both outputs.
    pub said: String,
}

impl Said {
    /// What it printed; an error if it failed.
    pub fn well(self) -> Result<String> {
        ensure!(self.success, "it failed: {}", self.said);
        Ok(self.said)
    }

    /// What it printed; an error if it did not fail.
    pub fn failed(self) -> Result<String> {
        ensure!(!self.success, "it did not fail: {}", self.said);
        Ok(self.said)
    }
}

/// Runs `ambit` against the cluster.
pub fn ambit(mesh: &Mesh, arguments: &[&str]) -> Result<Said> {
    let mut command = Command::new(program()?);
    command.env("KUBECONFIG", mesh.cluster.kubeconfig()).args(arguments).stdin(Stdio::null());
    let output = command.output().context("failed to start ambit")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { success: output.status.success(), said: text(&output.stdout) + &text(&output.stderr) })
}

/// The program.
pub fn program() -> Result<PathBuf> {
    Ok(ambit_harness::binaries()?.join("ambit"))
}
