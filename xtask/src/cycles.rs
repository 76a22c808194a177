//! Cycles of modules: files of one crate that import each other, directly or through others.
//!
//! File A depends on file B when code in A names an item that B defines, by path or by `use`; a re-export is
//! followed to the file that defines the item. `mod` declarations, re-exports of a module's own descendants,
//! and code under `#[cfg(test)]` are no dependency. Method calls on values are not seen: they need no import.
//!
//! Entry point: [`all`]. `tree` reads the modules of a crate, `names` finds what a path means, `graph` finds
//! the cycles.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::build;

mod graph;
mod names;
mod tree;

/// Dependencies of one file on another that are left out, in paths from the repository's root: two at most,
/// for reasons given in ARCHITECTURE.md.
const ACCEPTED: [(&str, &str); 0] = [];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    src_path: PathBuf,
}

/// Every cycle of every crate, also of the two that have a workspace of their own.
pub(crate) fn all() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for workspace in ["Cargo.toml", "ebpf/programs/Cargo.toml", "fuzz/Cargo.toml"] {
        for crate_root in roots(workspace)? {
            found.extend(of_crate(&crate_root, &build::root())?);
        }
    }
    Ok(found)
}

/// The cycles of the crate whose root file this is, with paths relative to `base`.
fn of_crate(crate_root: &Path, base: &Path) -> Result<Vec<String>> {
    let mut dependencies = names::dependencies(&tree::read(crate_root)?);
    for (from, to) in ACCEPTED {
        if let Some(files) = dependencies.get_mut(&base.join(from)) {
            files.remove(&base.join(to));
        }
    }
    Ok(graph::cycles(&dependencies, base))
}

/// The root files of the crates of a workspace: libraries, programs, integration tests, examples.
fn roots(manifest: &str) -> Result<Vec<PathBuf>> {
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--manifest-path", manifest];
    let output = build::cargo(&arguments).output().context("failed to start cargo metadata")?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("failed to read the metadata of {manifest}"))?;
    Ok(metadata.packages.into_iter().flat_map(|it| it.targets).map(|it| it.src_path).collect())
}

#[cfg(test)]
mod tests;
