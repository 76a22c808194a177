//! `cargo xtask crds`: the CustomResourceDefinitions in `deploy/crds`, from the types that read the objects.
//! That they are up to date is a test of `ambit-crd`.

use anyhow::{Context, Result};

use crate::build;

pub(crate) fn run() -> Result<()> {
    let folder = build::root().join("deploy/crds");
    for entry in std::fs::read_dir(&folder).with_context(|| format!("failed to list {}", folder.display()))? {
        std::fs::remove_file(entry?.path())?;
    }
    let mut command = build::cargo(&[
        "run",
        "--quiet",
        "-p",
        "ambit-crd",
        "--example",
        "crds",
        "--features",
        "schema",
        "--",
    ]);
    command.arg(&folder);
    build::step("writing deploy/crds", &mut command)
}
