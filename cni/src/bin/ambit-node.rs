//! The node agent's process.

use std::path::PathBuf;

use ambit_cni::agent::{self, Config, Remains};
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
    /// Remove what Ambit has left in the API, when all of its parts are gone: the last step of an
    /// uninstallation.
    Sweep {
        /// Ambit's own namespace.
        #[arg(long)]
        namespace: String,
        /// The Secret of the CA.
        #[arg(long)]
        secret: String,
        /// The ConfigMap of the trust bundle.
        #[arg(long)]
        config_map: String,
        /// The Lease of the controllers.
        #[arg(long)]
        lease: String,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Agent { config, node } => agent::run(&Config::read(&config, node)?)?,
        Verb::Sweep { namespace, secret, config_map, lease } => {
            agent::sweep(&Remains { namespace, secret, config_map, lease })?;
        }
    }
    Ok(())
}
