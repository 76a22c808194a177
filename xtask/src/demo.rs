//! `cargo xtask demo`: a mesh of two nodes on this machine, real traffic, explained while it runs.
//!
//! [`run`] is the verb, [`check`] the same scenario as a suite. `scenario` holds the steps, `table` the live
//! table.

mod scenario;
mod table;

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ambit_harness::Lab;
use anyhow::{Context, Result, bail};
use clap::Args;

use crate::count::Count;
use crate::{build, ebpf, setup};
use scenario::{Script, http, lab};
use table::Table;

/// How the demo ends.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run the scenario as assertions, say how many passed, and end.
    #[arg(long)]
    check: bool,
    /// Leave the mesh running and tell how to look around.
    #[arg(long, conflicts_with = "check")]
    keep: bool,
    /// Remove what an earlier `--keep` left running.
    #[arg(long, conflicts_with_all = ["check", "keep"])]
    clean: bool,
}

/// How long the live table runs without a terminal in which Ctrl-C could be pressed.
const UNATTENDED: Duration = Duration::from_secs(10);

/// Builds what is missing, then shows the mesh.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure_root("demo")?;
    if options.clean {
        for lab in ambit_harness::sweep(true)? {
            build::say(&format!("removed {lab}"));
        }
        return Ok(());
    }
    setup::ensure(&ebpf::NEEDS)?;
    setup::ensure(&setup::LAB)?;
    ebpf::run(ebpf::Options::default())?;
    build::programs()?;
    if options.check {
        let count = check()?;
        println!("{} passed, {} failed", count.passed, count.failed);
        return if count.failed == 0 { Ok(()) } else { bail!("the demo's check failed") };
    }
    show(options.keep)
}

/// The scenario as assertions, without the live part.
pub(crate) fn check() -> Result<Count> {
    let lab = start()?;
    let mut script = Script::new(&lab);
    script.play(&mut Table::new())?;
    let count = script.count();
    drop(script);
    lab.finish()?;
    Ok(count)
}

fn show(keep: bool) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        // The second one ends us at once; the lab's janitor removes everything all the same.
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })
    .context("failed to catch Ctrl-C")?;

    let lab = start()?;
    let mut table = Table::new();
    let mut script = Script::new(&lab);
    let played = script.play(&mut table);
    if let Err(error) = played {
        return if stop.load(Ordering::SeqCst) { end(lab) } else { Err(error) };
    }
    look_further(&lab);
    if keep {
        let servers = script.into_servers();
        // They stay as the mesh does; the janitor of `--clean` kills every process of the lab's namespaces.
        servers.into_iter().for_each(std::mem::forget);
        let folder = lab.keep()?;
        println!("\nIt stays up ({}). `cargo xtask demo --clean` takes it down.", folder.display());
        return Ok(());
    }
    let until = if std::io::stdin().is_terminal() { None } else { Some(Instant::now() + UNATTENDED) };
    println!(
        "\nTraffic goes on; each line is a connection that ended.{}",
        if until.is_none() { " Ctrl-C ends the demo." } else { "" }
    );
    table::head();
    while !stop.load(Ordering::SeqCst) && until.is_none_or(|until| Instant::now() < until) {
        script.traffic(&mut table);
    }
    drop(script);
    end(lab)
}

fn start() -> Result<Lab> {
    build::say("laying out two nodes and their pods, starting the controller and a ztunnel on each node");
    let began = Instant::now();
    let lab = http::market(lab()).binaries(&build::binaries()).start()?;
    build::say(&format!("the mesh is up after {:.1} s", began.elapsed().as_secs_f32()));
    Ok(lab)
}

fn end(lab: Lab) -> Result<()> {
    println!();
    build::say("taking the mesh down");
    lab.finish()?;
    build::say("nothing is left behind");
    Ok(())
}

/// What a curious reader tries next, as commands that work as they stand.
fn look_further(lab: &Lab) {
    let node = &lab.nodes[0];
    let inside = |netns: &str| format!("nsenter --net=/run/netns/{netns}");
    println!("\nLook further (from another terminal, as root):");
    println!(
        "  metrics      {} curl -s localhost:15020/metrics | grep istio_",
        inside(node.place.netns.name())
    );
    println!("  connections  {} curl -s localhost:15000/connections", inside(node.place.netns.name()));
    println!("  what a node knows  {} curl -s localhost:15000/config_dump", inside(node.place.netns.name()));
    println!(
        "  talk as web  {} curl -s http://{}/",
        inside(lab.pod("shop/web").netns.name()),
        scenario::address(lab, "shop/cart")
    );
    println!("  policies     edit {}/policy-*.yaml: they act within a second", lab.objects().display());
}
