//! `ambit`: the command line of the mesh.
//!
//! One file per verb. They share [`cluster`] (the API client), [`manifests`] (what is installed), [`rollout`]
//! (how far it is rolled out, and what delays it), [`membership`] (which pods are in the mesh) and [`table`].
//! Conclusions are drawn by pure functions.

mod check;
mod cluster;
mod enrol;
mod error;
mod facts;
mod forward;
mod install;
mod manifests;
mod membership;
mod output;
mod rollout;
mod table;
mod uninstall;
mod version;
mod views;
mod wait;
mod waypoint;
mod ztunnel;

use std::process::ExitCode;

use ambit_kube::error::chain;
use clap::{Parser, Subcommand};
use cluster::Access;

/// The command line of the Ambit service mesh.
#[derive(Debug, Parser)]
#[command(name = "ambit", version)]
struct Arguments {
    #[command(flatten)]
    access: Access,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install or upgrade Ambit with the chart's defaults, and wait until it is ready.
    Install(install::Options),
    /// Remove Ambit from the cluster and its nodes.
    Uninstall(uninstall::Options),
    /// Check the installation; the exit code is 1 if any check fails.
    Check(check::Options),
    /// Enrol a namespace in the mesh and wait until its running pods are enrolled.
    Enrol(enrol::Options),
    /// Release a namespace from the mesh and wait until its running pods are released.
    Release(enrol::Options),
    /// Show the state and the connections of the node daemons.
    Ztunnel(ztunnel::Options),
    /// Make, list and delete waypoints, the proxies that route HTTP.
    Waypoint(waypoint::Options),
    /// Print the versions of this program and of Ambit in the cluster.
    Version(version::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let failed = |error: &(dyn std::error::Error + 'static)| {
        eprintln!("ambit: {}", chain(error));
        ExitCode::FAILURE
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(run(&arguments)) {
        // The reader has closed the pipe (`ambit … | head`): no message, but not everything was printed.
        Err(error::Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::FAILURE
        }
        Err(error) => failed(&error),
        Ok(code) => code,
    }
}

async fn run(arguments: &Arguments) -> Result<ExitCode, error::Error> {
    let access = &arguments.access;
    match &arguments.verb {
        Verb::Install(options) => install::run(access, options).await?,
        Verb::Uninstall(options) => uninstall::run(access, options).await?,
        Verb::Check(options) => return check::run(access, options).await,
        Verb::Enrol(options) => enrol::enrol(access, options).await?,
        Verb::Release(options) => enrol::release(access, options).await?,
        Verb::Ztunnel(options) => ztunnel::run(access, options).await?,
        Verb::Waypoint(options) => return waypoint::run(access, options).await,
        Verb::Version(options) => version::run(access, options).await?,
    }
    Ok(ExitCode::SUCCESS)
}
