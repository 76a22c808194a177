//! `ztunnel`: the node's daemon. Carries the connections of the node's enrolled pods in mutual TLS.
//!
//! A connection: [`accept`] → [`outbound`] or [`inbound`] → decide (`ambit-core`) → dial → relay → report,
//! once. State: [`sync`] takes what the controller sends to [`state`] (decisions), [`kernel`] (capture) and
//! [`connections`] (those already open). Pods come and go through [`enroller`].
//! Connections that the kernel carries by itself: [`direct`].

mod accept;
mod addresses;
mod admin;
mod config;
mod connections;
mod daemon;
mod dial;
mod direct;
mod endpoints;
mod enroller;
mod enrolment;
mod error;
mod health;
mod inbound;
mod kernel;
mod netns;
mod outbound;
mod pods;
mod reason;
mod relay;
mod report;
mod shares;
mod signer;
mod socket;
mod state;
mod sync;
#[cfg(test)]
mod testing;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::config::Config;

/// The node daemon of the Ambit service mesh.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Carry the connections of this node's enrolled pods until SIGTERM.
    Run {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The node's name, where the file serves several.
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
    /// Remove everything this instance has in the kernel: programs, links, maps, pins. Its pods leave the
    /// mesh.
    Detach {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The node's name, where the file serves several.
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
}

fn main() -> ExitCode {
    match act(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ztunnel: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Run { config, node } => {
            let config = Config::read(&config, node)?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(config.workers)
                .thread_name("worker")
                .enable_all()
                .build()
                .context("starting the worker threads")?;
            let result = runtime.block_on(daemon::run(config));
            // Blocking calls left behind (a name being resolved) must not hold up the end.
            runtime.shutdown_background();
            result.map_err(Into::into)
        }
        Verb::Detach { config, node } => {
            let config = Config::read(&config, node)?;
            ambit_loader::detach(&daemon::kernel_settings(&config)?).context("removing the instance")
        }
    }
}
