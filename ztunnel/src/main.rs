//! `ztunnel`: the node's daemon. Carries the connections of the node's enrolled pods in mutual TLS.
//!
//! A connection: [`accept`] → [`outbound`] (or `ambit_proxy::inbound`) → decide (`ambit-core`) → dial → relay
//! → report, once. State: `ambit_proxy::sync` applies what the controller sends, and [`follower`] has the
//! kernel follow: [`capture`] and [`direct`], the connections that the kernel carries by itself. Pods come
//! and go through [`enroller`]; [`upkeep`] compares what is in the kernel with all this. The daemon's parts
//! are named in [`node`] and put together in [`daemon`].

mod accept;
mod admin;
mod capture;
mod config;
mod daemon;
mod direct;
mod enroller;
mod enrolment;
mod error;
mod follower;
mod interfaces;
mod links;
mod metrics;
mod netns;
mod node;
mod outbound;
mod owners;
mod pods;
mod reason;
mod upkeep;

use std::path::PathBuf;
use std::process::ExitCode;

use ambit_daemon_kit::exit;
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
    exit::status("ztunnel", act(Arguments::parse().verb))
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
                .context("failed to start the worker threads")?;
            let result = runtime.block_on(daemon::run(config));
            // Blocking calls still running (a name being resolved) must not delay the end.
            runtime.shutdown_background();
            result.map_err(Into::into)
        }
        Verb::Detach { config, node } => {
            let config = Config::read(&config, node)?;
            ambit_loader::detach(&daemon::kernel_settings(&config)?).context("failed to remove the instance")
        }
    }
}
