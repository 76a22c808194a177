//! `ambit`: the command line of the mesh.
//!
//! One file a verb. What they share: [`cluster`] (the way to the API), [`manifests`] (what is installed),
//! [`rollout`] (what runs of it, and why not), [`membership`] (which pods are in the mesh), [`table`]. What
//! they conclude is decided in pure functions.

/// `println!` that gives an error where there is no reader, instead of a panic.
macro_rules! say {
    ($($words:tt)*) => { crate::print(format_args!($($words)*)) };
}

mod check;
mod cluster;
mod enrol;
mod error;
mod facts;
mod forward;
mod install;
mod manifests;
mod membership;
mod rollout;
mod table;
mod uninstall;
mod version;
mod views;
mod wait;
mod ztunnel;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use cluster::Access;

/// The mesh's command line.
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
    /// Install Ambit with the chart's defaults, or bring it up to date, and wait until it is ready.
    Install(install::Options),
    /// Take Ambit off the cluster and its nodes.
    Uninstall(uninstall::Options),
    /// Say what is well and what is not; the exit code is 1 if anything is not.
    Check(check::Options),
    /// Put a namespace into the mesh and wait until its running pods are.
    Enrol(enrol::Options),
    /// Take a namespace out of the mesh and wait until its running pods are.
    Release(enrol::Options),
    /// What the node daemons know and do.
    Ztunnel(ztunnel::Options),
    /// The versions of this program and of what runs in the cluster.
    Version(version::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(run(&arguments));
    match done {
        // Whoever reads has read enough (`ambit … | head`): nothing to say, but not all was done.
        Err(error::Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::FAILURE)
        }
        Err(error) => {
            eprintln!("ambit: {}", chain(&error));
            Ok(ExitCode::FAILURE)
        }
        Ok(code) => Ok(code),
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
        Verb::Version(options) => version::run(access, options).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// See `say!`.
fn print(words: std::fmt::Arguments<'_>) -> Result<(), error::Error> {
    Ok(writeln!(std::io::stdout().lock(), "{words}")?)
}

/// An error with its causes, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let words = |error: &(dyn std::error::Error + 'static)| match error.downcast_ref::<kube::Error>() {
        // What the API server says, without the client's wrapping.
        Some(kube::Error::Api(status)) if !status.message.is_empty() => (status.message.clone(), true),
        _ => (error.to_string(), false),
    };
    let (mut text, mut last) = words(error);
    let mut cause = error.source();
    while let Some(error) = cause.filter(|_| !last) {
        let (more, ends) = words(error);
        // Some errors say what their cause says.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        last = ends;
        cause = error.source();
    }
    text
}
