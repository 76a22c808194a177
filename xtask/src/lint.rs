//! `cargo xtask lint`: what a reviewer should never have to say.

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{arrows, build, cycles, documents, ebpf, layout, setup};

/// How much is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What the toolchain itself can say.
    Quick,
    /// Also licences and bans, for which cargo-deny is built where it is missing.
    Full,
}

/// What to check.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this check: `fmt`, `arrows`, `orphans`, `cycles`, `layout`, `documents`, `clippy` or `deny`.
    #[arg(long, value_name = "CHECK")]
    only: Option<String>,
}

/// One check, by name.
type Check = (&'static str, fn() -> Result<()>);

/// The checks in the order in which they run, the quick ones first.
const CHECKS: [Check; 8] = [
    ("fmt", formatting),
    ("arrows", || none_wrong("arrows between crates", arrows::crates())),
    ("orphans", || none_wrong("files that no module declares", arrows::orphans())),
    ("cycles", || none_wrong("cycles of modules", cycles::all())),
    ("layout", || none_wrong("layout of files", layout::problems())),
    ("documents", || none_wrong("what documents point at", documents::problems())),
    ("clippy", clippy),
    ("deny", deny),
];

/// `cargo xtask lint`.
pub(crate) fn verb(options: &Options) -> Result<()> {
    let Some(name) = &options.only else {
        setup::ensure(&ebpf::NEEDS)?;
        ebpf::run(ebpf::Options::default())?;
        return run(Depth::Full);
    };
    let names = || CHECKS.map(|(name, _)| name).join(", ");
    let (_, check) = CHECKS
        .iter()
        .find(|(it, _)| it == name)
        .with_context(|| format!("unknown check {name:?}: the checks are {}", names()))?;
    check()
}

/// Runs every check to its end and fails if any did.
pub(crate) fn run(depth: Depth) -> Result<()> {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        if name == "deny" && depth == Depth::Quick {
            continue;
        }
        if let Err(error) = check() {
            eprintln!("{error:#}");
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("lint failed: {}", failed.join(", "))
}

fn formatting() -> Result<()> {
    build::step("formatting", &mut build::cargo(&["fmt", "--all", "--check"]))?;
    format("ebpf/programs")?;
    format("fuzz")
}

fn clippy() -> Result<()> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--keep-going", "--", "--deny", "warnings"];
    build::step("clippy", &mut build::cargo(&arguments))
}

/// Advisories live on a server that a closed network does not reach: `cargo deny check` alone has them too.
fn deny() -> Result<()> {
    setup::ensure(&setup::DENY)?;
    let arguments = ["deny", "--workspace", "check", "bans", "licenses", "sources"];
    build::step("licences and bans", &mut build::cargo(&arguments))
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
