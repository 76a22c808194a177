//! `cargo xtask fuzz`: the targets of fuzz/, each for a bounded time.
//!
//! libFuzzer needs counters in the code, and they come from LLVM by way of stable flags of rustc: no nightly
//! toolchain and no `cargo-fuzz` is needed, though the folder has the layout that `cargo fuzz` knows.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::build;
use crate::count::Count;

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this target of fuzz/fuzz_targets.
    target: Option<String>,
    /// How long each is run.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// Counters at every edge, and what comparisons compare: what `cargo fuzz` asks for, less the address
/// sanitizer, for which there is little to find in code that has no unsafe block.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// The longest input tried: most of what is parsed is smaller, and short inputs are tried more often.
const LONGEST: usize = 16 << 10;
/// What an input may take at the most: more is a finding.
const INPUT_SECONDS: u64 = 10;
const MEMORY_MIB: usize = 1024;

/// Builds and runs; fails when an input is found that a target cannot bear.
pub(crate) fn run(options: &Options) -> Result<()> {
    let span = Duration::from_secs(options.seconds);
    let count = match &options.target {
        None => all(span)?,
        Some(target) => {
            let targets = targets()?;
            ensure!(targets.contains(target), "no target {target:?}: there are {}", targets.join(", "));
            let binaries = compile()?;
            ensure!(one(&binaries, target, span)?, "{target} has a finding");
            Count { passed: 1, failed: 0 }
        }
    };
    println!("{} targets without a finding, {} with one", count.passed, count.failed);
    ensure!(count.failed == 0, "fuzzing has findings");
    Ok(())
}

/// Every target, one after the other.
pub(crate) fn all(span: Duration) -> Result<Count> {
    let binaries = compile()?;
    let mut count = Count::default();
    for target in targets()? {
        let clean = one(&binaries, &target, span)?;
        *if clean { &mut count.passed } else { &mut count.failed } += 1;
    }
    Ok(count)
}

fn folder() -> PathBuf {
    build::root().join("fuzz")
}

fn targets() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in
        std::fs::read_dir(folder().join("fuzz_targets")).context("failed to list fuzz/fuzz_targets")?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    found.sort();
    Ok(found)
}

/// All targets at once: they stand on the same crates. Returns where they are.
fn compile() -> Result<PathBuf> {
    let host = host()?;
    // A folder of its own: other flags would rebuild everything each time.
    let target = build::target().join("fuzz");
    // With `--target` the flags are not for build scripts and procedural macros.
    let mut command = build::cargo(&["build", "--bins", "--target", &host]);
    command
        .current_dir(folder())
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\u{1f}"));
    build::step("building the fuzz targets and their dependencies", &mut command)?;
    Ok(target.join(host).join("debug"))
}

/// This machine, as rustc names it.
fn host() -> Result<String> {
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .arg("-vV")
        .output()
        .context("failed to ask rustc for its host")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc names no host")
}

/// Runs a target from its committed corpus; what it finds on the way is kept with the build, and known the
/// next time.
fn one(binaries: &Path, target: &str, span: Duration) -> Result<bool> {
    let seeds = folder().join("corpus").join(target);
    ensure!(seeds.is_dir(), "{} is missing: a target begins with examples", seeds.display());
    let found = build::target().join("fuzz/corpus").join(target);
    let artifacts = folder().join("artifacts").join(target);
    for folder in [&found, &artifacts] {
        std::fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    }
    build::say(&format!("fuzzing {target} for {} s", span.as_secs()));
    let mut command = Command::new(binaries.join(target));
    command
        .arg(format!("-max_total_time={}", span.as_secs()))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-verbosity=0"])
        .args([&found, &seeds])
        .stdin(Stdio::null());
    let output = command.output().with_context(|| format!("failed to start {target}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{text}");
        eprintln!("{target}: the input is in {}", artifacts.display());
        return Ok(false);
    }
    let executions = text
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .and_then(|number| number.trim().parse::<u64>().ok());
    match executions {
        Some(executions @ 1..) => println!("{target}: {executions} inputs"),
        _ => bail!("{target} does not report how many inputs it has tried:\n{text}"),
    }
    Ok(true)
}
