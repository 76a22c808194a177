//! `ambit-semantics list | serve ROW ADDRESS | connect ROW ADDRESS`: one row's server or client; its
//! observation as a JSON line.

use std::net::SocketAddr;
use std::time::Duration;

use ambit_apps::semantics::{Row, rows};
use anyhow::{Result, bail};
use clap::Parser;
use serde_json::{Value, json};

/// A part that takes longer than this hangs.
const DEADLINE: Duration = Duration::from_mins(2);

/// Tries what applications rely on.
#[derive(Debug, Parser)]
enum Arguments {
    /// The rows' names, one a line.
    List,
    /// The server's part of a row.
    Serve { row: String, address: SocketAddr },
    /// The client's part of a row.
    Connect { row: String, address: SocketAddr },
}

fn main() -> Result<()> {
    match Arguments::parse() {
        Arguments::List => rows().for_each(|row| println!("{}", row.name)),
        Arguments::Serve { row, address } => {
            let row = find(&row)?;
            let listener = (row.listen)(address)?;
            println!("ready");
            within_deadline(row, "server");
            tell(row, "server", (row.server)(&listener));
        }
        Arguments::Connect { row, address } => {
            let row = find(&row)?;
            within_deadline(row, "client");
            tell(row, "client", (row.client)(address));
        }
    }
    Ok(())
}

fn find(name: &str) -> Result<&'static Row> {
    match rows().find(|row| row.name == name) {
        Some(row) => Ok(row),
        None => {
            bail!("no row {name:?}; there are {}", rows().map(|row| row.name).collect::<Vec<_>>().join(", "))
        }
    }
}

/// A failure is an observation too: with a mesh it must be the same.
fn tell(row: &Row, side: &str, outcome: Result<Value>) {
    let outcome = outcome.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
    println!("{}", json!({"row": row.name, "side": side, "outcome": outcome}));
}

fn within_deadline(row: &'static Row, side: &'static str) {
    let guard = std::thread::Builder::new().name("deadline".to_owned()).spawn(move || {
        std::thread::sleep(DEADLINE);
        tell(row, side, Err(anyhow::anyhow!("did not end within {} s", DEADLINE.as_secs())));
        std::process::exit(1);
    });
    if let Err(error) = guard {
        eprintln!("no deadline: {error}");
    }
}
