//! `cargo xtask lint`: what a reviewer should never have to say.

use anyhow::{Result, bail};

use crate::{arrows, build, setup};

/// How much is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What the toolchain itself can say.
    Quick,
    /// Also licences and bans, for which cargo-deny is built where it is missing.
    Full,
}

/// Runs every check to its end and fails if any did.
pub(crate) fn run(depth: Depth) -> Result<()> {
    let mut failed = Vec::new();
    let mut check = |what: &'static str, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("{error:#}");
            failed.push(what);
        }
    };
    check("fmt", build::step("formatting", &mut build::cargo(&["fmt", "--all", "--check"])));
    check("fmt of the eBPF programs", format("ebpf/programs"));
    check("fmt of the fuzz targets", format("fuzz"));
    check("arrows", none_wrong("the arrows between crates", arrows::crates()));
    check("orphans", none_wrong("files no module declares", arrows::orphans()));
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    check("clippy", build::step("clippy", &mut build::cargo(&clippy)));
    if depth == Depth::Full {
        setup::ensure(&setup::DENY)?;
        // Advisories live on a server that a closed network does not reach: `cargo deny check` alone has them
        // too.
        let deny = ["deny", "--workspace", "check", "bans", "licenses", "sources"];
        check("deny", build::step("licences and bans", &mut build::cargo(&deny)));
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("lint failed: {}", failed.join(", "))
}

/// What has a workspace of its own.
fn format(folder: &str) -> Result<()> {
    let mut command = build::cargo(&["fmt", "--check"]);
    command.current_dir(build::root().join(folder));
    build::step(&format!("formatting of {folder}"), &mut command)
}

fn none_wrong(what: &str, found: Result<Vec<String>>) -> Result<()> {
    build::say(what);
    let wrong = found?;
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{what}:\n  {}", wrong.join("\n  "))
}
