//! Errors of operations on programs, links and maps.

use std::io;
use std::path::PathBuf;

use ambit_abi::{NetnsCookie, PodName};

/// An operation on the kernel's side failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cgroup v2 hierarchy was not found.
    #[error("failed to find the mount of cgroup v2")]
    Mounts(#[source] io::Error),
    /// The cgroup's directory could not be opened.
    #[error("failed to open cgroup {}", path.display())]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The directory for pins is not in a BPF filesystem.
    #[error("failed to use {} for pins: it is not in a BPF filesystem (mount -t bpf bpf DIR)", .0.display())]
    NotBpffs(PathBuf),
    /// A pin could not be made, read or removed.
    #[error("failed to {operation} {}", path.display())]
    Pin {
        /// What failed, as a verb with its object.
        operation: &'static str,
        /// The pin or its directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The object file could not be read.
    #[error("failed to read eBPF object {}", path.display())]
    ObjectFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The object could not be loaded into the kernel.
    #[error("failed to load the eBPF object")]
    Object(#[source] Box<aya::EbpfError>),
    /// A program was not accepted.
    #[error("failed to {operation} program {program}")]
    Program {
        /// What failed, as a verb.
        operation: &'static str,
        /// The program's name.
        program: &'static str,
        /// The cause, with the verifier's output for a load.
        source: Box<aya::programs::ProgramError>,
    },
    /// A program could not be attached. Another program may be attached there exclusively.
    #[error("failed to attach program {program}")]
    Attach {
        /// The program's name.
        program: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The object lacks a program.
    #[error("failed to find program {0} in the eBPF object")]
    Missing(&'static str),
    /// A pinned map has another layout than this build: an unreleased build of the same version pinned it.
    #[error(
        "failed to use pinned map {map}: it has {found}, this build {expected}; detach the instance first"
    )]
    Layout {
        /// The map's name.
        map: &'static str,
        /// Sizes of the pinned map.
        found: String,
        /// Sizes of this build.
        expected: String,
    },
    /// A map operation failed.
    #[error("failed to {operation} map {map}")]
    Map {
        /// What failed, as a verb.
        operation: &'static str,
        /// The map's name.
        map: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A pod has as many entries of a map as it may have.
    #[error("map {map}: the pod has its share of {share} entries")]
    ShareUsed {
        /// The map's name.
        map: &'static str,
        /// How many that are.
        share: usize,
    },
    /// Waiting for records failed.
    #[error("failed to wait for records")]
    Wait(#[source] io::Error),
    /// The number of CPUs could not be read.
    #[error("failed to count CPUs")]
    Cpus(#[source] io::Error),
    /// A clock could not be read.
    #[error("failed to read the clock")]
    Clock(#[source] io::Error),
    /// The programs' log could not be read.
    #[error("failed to open the programs' log")]
    Log(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The pod is not enrolled.
    #[error("failed to find network namespace {0} among the enrolled ones")]
    NotEnrolled(NetnsCookie),
    /// The workload's name is too long.
    #[error("failed to store workload name {0:?}: it is longer than {max} bytes", max = PodName::CAPACITY)]
    NameTooLong(String),
}
