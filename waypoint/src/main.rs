//! `waypoint`: the layer-7 proxy of the Ambit service mesh.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use ambit_daemon_kit::exit;
use ambit_waypoint::config::{Config, Overrides};
use ambit_waypoint::daemon;
use anyhow::Context;
use clap::{Parser, Subcommand};

/// The layer-7 proxy of the Ambit service mesh.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve what has this waypoint until SIGTERM.
    Run {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The waypoint's own workload, where the file serves several.
        #[arg(long, value_name = "UID")]
        workload: Option<String>,
        /// The name of the node that it runs on, where the file serves several.
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// The address that its connections come from, where the file serves several.
        #[arg(long, value_name = "ADDRESS")]
        address: Option<IpAddr>,
    },
}

fn main() -> ExitCode {
    exit::status("waypoint", act(Arguments::parse().verb))
}

fn act(verb: Verb) -> anyhow::Result<()> {
    let Verb::Run { config, workload, node, address } = verb;
    let config = Config::read(&config, Overrides { workload, node, address })?;
    // Requests have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the main thread's runtime")?;
    let result = runtime.block_on(daemon::run(config));
    runtime.shutdown_background();
    result.map_err(Into::into)
}
