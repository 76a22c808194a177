//! The controller: reads the objects that users write, serves configuration to the node daemons, and issues
//! certificates.
//!
//! Entry point: [`run::run`]. A change passes through [`objects`] (files → objects) or [`kubernetes`]
//! (API → objects), then [`pipeline`]: `ambit_core::derive` (objects → changes), `Mesh::apply`, and the
//! publisher of `ambit_xds`. A certificate request passes through [`issue`] and [`ca`].

mod admin;
mod bootstrap;
mod ca;
mod config;
mod files;
mod frontend;
mod hex;
mod issue;
mod kubernetes;
mod objects;
mod pipeline;
mod run;
mod secrets;
mod serving;
mod shared;
mod state;
mod telemetry;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use ambit_daemon_kit::exit;
use clap::{Parser, Subcommand};

/// Ambit's controller.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve configuration and certificates to the nodes until SIGTERM.
    Run {
        /// The configuration file (YAML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Write the file with which a node's daemon finds and trusts this controller.
    Bootstrap {
        /// The configuration file (YAML).
        #[arg(long)]
        config: PathBuf,
        /// The node's name, as in its pods' spec.nodeName.
        #[arg(long)]
        node: String,
        /// The controller's address for the node: host:port.
        #[arg(long)]
        address: String,
        /// The file to write. It holds a secret: mode 0600.
        #[arg(long)]
        output: PathBuf,
    },
}

fn main() -> ExitCode {
    exit::status("controller", act(Arguments::parse().verb))
}

fn act(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Run { config } => run::run(&config),
        Verb::Bootstrap { config, node, address, output } => {
            bootstrap::write(&config, &node, &address, &output)
        }
    }
}
