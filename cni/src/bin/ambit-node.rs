//! The node agent's process.

use std::path::PathBuf;
use std::process::ExitCode;

use ambit_cni::agent::{self, Config, Remains};
use ambit_daemon_kit::exit;
use clap::{Parser, Subcommand};

/// Ambit's node agent for Kubernetes.
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
        /// This node's name; overrides the file's.
        #[arg(long)]
        node: Option<String>,
    },
    /// Remove what Ambit left in the API: the last step of an uninstallation.
    Sweep {
        /// Ambit's own namespace.
        #[arg(long)]
        namespace: String,
        /// The Secret with the CA's keys.
        #[arg(long)]
        secret: String,
        /// The ConfigMap with the trust bundle.
        #[arg(long)]
        config_map: String,
        /// The Lease of the controllers.
        #[arg(long)]
        lease: String,
    },
}

fn main() -> ExitCode {
    exit::status("ambit-node", act(Arguments::parse().verb))
}

fn act(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Agent { config, node } => agent::run(&Config::read(&config, node)?)?,
        Verb::Sweep { namespace, secret, config_map, lease } => {
            agent::sweep(&Remains { namespace, secret, config_map, lease })?;
        }
    }
    Ok(())
}
