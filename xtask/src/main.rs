//! `cargo xtask VERB`: everything a developer or a newcomer does with this repository, one file per verb.

mod arrows;
mod bench;
mod build;
mod cluster;
mod conformance;
mod count;
mod crds;
mod cycles;
mod demo;
mod documents;
mod ebpf;
mod fuzz;
mod h2spec;
mod image;
mod layout;
mod lint;
mod setup;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, check, test and try Ambit.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build the eBPF programs with the toolchain that this machine has.
    Ebpf(ebpf::Options),
    /// Formatting, clippy, licences and bans, the arrows between crates, cycles of modules, orphan files.
    Lint(lint::Options),
    /// Show a mesh of two nodes on this machine, with real traffic.
    Demo(demo::Options),
    /// Write deploy/crds from the types that read the objects.
    Crds,
    /// A real Kubernetes of two nodes on this machine.
    Cluster(cluster::Options),
    /// Run the Gateway API's conformance suite for meshes.
    Conformance(conformance::Options),
    /// Run the fuzz targets, each for a bounded time.
    Fuzz(fuzz::Options),
    /// Compare the mesh with plain TCP and with Envoy, side by side in one run.
    Bench(bench::Options),
    /// Run h2spec, the conformance suite of HTTP/2, against a waypoint.
    H2spec,
    /// Write OCI archives of the images, without a container engine.
    Image(image::Options),
    /// Build everything and run the suites.
    Test(test::Options),
}

fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Ebpf(options) => {
            setup::ensure(&ebpf::NEEDS)?;
            ebpf::run(options).map(drop)
        }
        Verb::Lint(options) => lint::verb(&options),
        Verb::Demo(options) => demo::run(&options),
        Verb::Crds => crds::run(),
        Verb::Cluster(options) => cluster::run(&options),
        Verb::Conformance(options) => conformance::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::H2spec => h2spec::run(),
        Verb::Image(options) => image::run(&options),
        Verb::Test(options) => test::run(&options),
    }
}
