//! What the programs print when they cannot begin: one line with the reason, whatever the environment asks of
//! Rust's own reports.

use std::process::Command;

use ambit_harness::binaries;
use ambit_suites::Rows;
use anyhow::{Context, Result, ensure};

#[test]
fn a_wrong_configuration_is_one_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("config.yaml");
    std::fs::write(&config, "no_such_field: 1\n")?;
    let config = config.to_str().context("a path in UTF-8")?;
    let field = format!("{config}: no_such_field: unknown field");
    // The program, its arguments, and what the line says.
    let rows: [(&str, &[&str], &str); 6] = [
        ("ztunnel", &["run", "--config", config], &field),
        ("ztunnel", &["detach", "--config", config], &field),
        ("controller", &["run", "--config", config], &field),
        (
            "controller",
            &["bootstrap", "--config", config, "--node", "n", "--address", "a:1", "--output", "o"],
            &field,
        ),
        ("ambit-node", &["agent", "--config", config], &field),
        ("ambit", &["--kubeconfig", "/none", "enrol", "shop"], "failed to find the API server"),
    ];
    let mut table = Rows::new();
    for (program, arguments, expected) in rows {
        table.row(&format!("{program} {}", arguments[0]), || {
            let mut command = Command::new(binaries()?.join(program));
            command.args(arguments).env("RUST_BACKTRACE", "full");
            let output = command.output().with_context(|| format!("failed to start {program}"))?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(1), "{}", output.status);
            ensure!(said.lines().count() == 1, "more than a line: {said}");
            ensure!(said.starts_with(&format!("{program}: ")), "{said}");
            ensure!(said.contains(expected), "{said}");
            Ok(())
        });
    }
    table.finish();
    Ok(())
}
