//! The node agent's process.

use std::path::PathBuf;

use ambit_cni::agent::{self, Config};
use clap::{Parser, Subcommand};

/// What Ambit runs on every node of a Kubernetes cluster beside ztunnel.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Keep the CNI plugin installed and the node's pods enrolled until SIGTERM.
    Agent {
        /// The configuration file (YAML).
        #[arg(long)]
        config: PathBuf,
        /// This node's name; goes before the file's.
        #[arg(long)]
        node: Option<String>,
    },
}

fn main() -> anyhow::Result<()> {
    let Verb::Agent { config, node } = Arguments::parse().verb;
    agent::run(&Config::read(&config, node)?)?;
    Ok(())
}
