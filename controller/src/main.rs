//! The controller: reads the objects users write, tells every node's daemon what it needs to know, and hands
//! out certificates.
//!
//! Way in: [`run::run`]. From there a change goes [`objects`] (files → objects) or [`kubernetes`] (API →
//! objects) → [`pipeline`]: `ambit_core::derive` (objects → changes) → `Mesh::apply` → the publisher of
//! `ambit_xds`; a certificate request goes [`issue`] → [`ca`].

mod admin;
mod bootstrap;
mod ca;
mod config;
mod hex;
mod issue;
mod kubernetes;
mod objects;
mod pipeline;
mod run;
mod serving;
mod shared;
mod state;
mod telemetry;
mod token;

use std::path::PathBuf;

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
        /// Where the node reaches the controller: host:port.
        #[arg(long)]
        address: String,
        /// The file to write. It holds a secret: mode 0600.
        #[arg(long)]
        output: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Run { config } => run::run(&config),
        Verb::Bootstrap { config, node, address, output } => {
            bootstrap::write(&config, &node, &address, &output)
        }
    }
}

/// An error and its causes on one line.
fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = in_words(error);
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_in_words = in_words(cause);
        // Some errors say what their cause says.
        if !text.ends_with(&cause_in_words) {
            text = format!("{text}: {cause_in_words}");
        }
        source = cause.source();
    }
    text
}

/// What an API server answered is said in its own words: the error prints the whole answer, twice.
fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    match error.downcast_ref() {
        Some(kube::Error::Api(status)) => status.message.clone(),
        _ => match error.downcast_ref::<kube::core::Status>() {
            Some(status) => status.message.clone(),
            None => error.to_string(),
        },
    }
}
