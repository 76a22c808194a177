//! `cargo xtask test`: builds everything, runs the suites one after the other, and counts.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::count::Count;
use crate::{build, cluster, demo, ebpf, fuzz, image, lint, setup};

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this suite: `lint`, `unit`, `demo`, `fuzz`, or a file of tests/suites/tests.
    #[arg(long, value_name = "SUITE")]
    only: Option<String>,
    /// Everything, also what takes long: more cases for property tests, cargo-deny, fuzzing, a longer soak.
    #[arg(long)]
    all: bool,
}

/// How long each fuzz target is run.
const FUZZ: Duration = Duration::from_secs(20);
/// Suites of `--all` alone.
const LONG: [&str; 5] = ["fuzz", "kubernetes_ca", "kubernetes_outages", "kubernetes_scale", "waypoint_scale"];
/// How long the soak of `--all` takes; else it is a minute.
const SOAK_MINUTES: &str = "5";
/// A suite that hangs is a failure; the longest takes a few minutes on two cores.
const LIMIT: Duration = Duration::from_mins(25);

/// Sets the machine up, builds, runs the suites, prints the sum; fails when anything failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure_root("test")?;
    let suites = suites()?;
    let chosen: Vec<&String> = match &options.only {
        None => suites.iter().filter(|suite| options.all || !LONG.contains(&suite.as_str())).collect(),
        Some(name) => suites.iter().filter(|suite| *suite == name).collect(),
    };
    if chosen.is_empty() {
        bail!("no suite {:?}: there are {}", options.only.as_deref().unwrap_or(""), suites.join(", "));
    }
    setup::ensure(&ebpf::NEEDS)?;
    setup::ensure(&setup::LAB)?;
    ebpf::run(ebpf::Options::default())?;
    if chosen.iter().any(|suite| *suite == "unit") {
        ebpf::run(ebpf::Options { log: true })?;
    }
    if chosen.iter().any(|suite| *suite != "lint") {
        build::everything()?;
    }
    if chosen.iter().any(|suite| needs_cluster(suite)) {
        setup::ensure(&setup::BPFTOOL)?;
        cluster::prepare()?;
        image::for_tests()?;
    }

    let start = Instant::now();
    let mut rows = Vec::new();
    for suite in chosen {
        build::say(&format!("suite {suite}"));
        let began = Instant::now();
        let count = run_suite(suite, options.all).unwrap_or_else(|error| {
            eprintln!("{error:#}");
            Count { passed: 0, failed: 1 }
        });
        rows.push((suite, count, began.elapsed()));
    }
    summary(&rows, start.elapsed())
}

/// Whether a suite runs on a real Kubernetes.
fn needs_cluster(suite: &str) -> bool {
    matches!(suite, "cluster" | "rights") || suite.starts_with("kubernetes")
}

/// Every suite, in the order in which failures are cheapest to find.
fn suites() -> Result<Vec<String>> {
    let folder = build::root().join("tests/suites/tests");
    let mut wired = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("failed to list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            wired.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    wired.sort();
    Ok(["lint", "unit", "fuzz", "demo"].map(str::to_owned).into_iter().chain(wired).collect())
}

fn run_suite(suite: &str, all: bool) -> Result<Count> {
    match suite {
        "lint" => {
            lint::run(if all { lint::Depth::Full } else { lint::Depth::Quick })?;
            Ok(Count { passed: 1, failed: 0 })
        }
        "demo" => demo::check(),
        "fuzz" => fuzz::all(FUZZ),
        "unit" => {
            let arguments = ["test", "--workspace", "--exclude", "ambit-suites", "--no-fail-fast"];
            let mut command = build::cargo(&arguments);
            if all {
                command.env("PROPTEST_CASES", "4096");
            }
            counted(command)
        }
        file => {
            // One row at a time: rows share two cores with two daemons and their clients. The whole workspace
            // is named, because one package alone would have its dependencies built again with
            // fewer features.
            let arguments = ["test", "--workspace", "--test", file, "--", "--test-threads", "1"];
            let mut command = build::cargo(&arguments);
            if all {
                command.env("AMBIT_SOAK", SOAK_MINUTES);
            }
            counted(command)
        }
    }
}

/// Runs `cargo test`, passes its output on and adds up its result lines.
fn counted(mut command: Command) -> Result<Count> {
    command.env("AMBIT_BIN_DIR", build::binaries()).env("AMBIT_IMAGES", image::test_folder());
    command.stdout(Stdio::piped()).stdin(Stdio::null());
    let mut child = command.spawn().context("failed to start cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let (lines, received) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + LIMIT;
    let mut count = Count::default();
    loop {
        match received.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("{line}");
                if let Some(more) = result_line(&line) {
                    count.passed += more.passed;
                    count.failed += more.failed;
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                child.kill().context("failed to stop a suite that hangs")?;
                eprintln!("the suite did not end within {} minutes", LIMIT.as_secs() / 60);
                count.failed += 1;
                break;
            }
        }
    }
    let status = child.wait().context("failed to wait for cargo test")?;
    // It did not compile, or a test process died without a result line.
    if !status.success() && count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

/// The numbers of `test result: ok. 3 passed; 0 failed; …`.
fn result_line(line: &str) -> Option<Count> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| {
        let before = rest.split(word).next()?;
        before.split_whitespace().next_back()?.parse().ok()
    };
    Some(Count { passed: number(" passed")?, failed: number(" failed")? })
}

fn summary(rows: &[(&String, Count, Duration)], took: Duration) -> Result<()> {
    println!();
    let mut sum = Count::default();
    for (suite, count, time) in rows {
        println!("{suite:<16} {:>5} passed {:>3} failed {:>5} s", count.passed, count.failed, time.as_secs());
        sum.passed += count.passed;
        sum.failed += count.failed;
    }
    println!("{} min {} s", took.as_secs() / 60, took.as_secs() % 60);
    println!("{} passed, {} failed", sum.passed, sum.failed);
    if sum.failed > 0 || sum.passed == 0 {
        bail!("the suites did not pass");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::result_line;

    #[test]
    fn test_results_are_counted() {
        let rows = [
            ("all well", "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured", Some((12, 0))),
            ("some failed", "test result: FAILED. 3 passed; 2 failed; 0 ignored", Some((3, 2))),
            ("another line", "test mesh::services ... ok", None),
        ];
        for (name, line, expected) in rows {
            assert_eq!(result_line(line).map(|it| (it.passed, it.failed)), expected, "{name}");
        }
    }
}
