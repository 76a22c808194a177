//! A real Kubernetes on one machine: control plane, nodes, containerd, CoreDNS, each node in namespaces of
//! its own.
//!
//! Entry point: [`Cluster::up`]; [`parts`] builds what it runs, once.
//!
//! ```no_run
//! use ambit_cluster::{Cluster, Options};
//!
//! # fn main() -> anyhow::Result<()> {
//! let cluster = Cluster::up(&Options::new("try", "/tmp/try-cluster"))?;
//! cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
//! println!("{}", cluster.output(&["get", "nodes"])?);
//! cluster.down()
//! # }
//! ```

pub mod archive;
mod cluster;
mod control;
mod coredns;
mod machine;
mod network;
mod node;
mod parts;
mod pki;
mod state;

pub use cluster::{Cluster, Options};
pub use control::Part;
pub use node::Node;
pub use parts::versions;
pub use parts::{
    Conformance, FOLDER_VARIABLE, Parts, conformance, folder as parts_folder, go_present, h2spec,
    h2spec_present, parts,
};

/// The program `ambit-cluster-machine`: what runs inside the machines.
#[doc(hidden)]
pub fn node_program(arguments: &[std::ffi::OsString]) -> std::process::ExitCode {
    machine::program(arguments)
}
