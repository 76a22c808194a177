//! What can go wrong with programs, links and maps.

use std::io;
use std::path::PathBuf;

use ambit_abi::NetnsCookie;

/// An operation on the kernel's side failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cgroup v2 hierarchy could not be found.
    #[error("cannot find where cgroup v2 is mounted")]
    Mounts(#[source] io::Error),
    /// The cgroup's directory could not be opened.
    #[error("cannot open the cgroup {}", path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    /// The directory for pins is not in a BPF filesystem.
    #[error("{} is not in a BPF filesystem (mount -t bpf bpf DIR)", .0.display())]
    NotBpffs(PathBuf),
    /// A pin could not be made, read or removed.
    #[error("cannot {operation} {}", path.display())]
    Pin { operation: &'static str, path: PathBuf, source: io::Error },
    /// The object could not be loaded into the kernel.
    #[error("cannot load the eBPF object")]
    Object(#[source] Box<aya::EbpfError>),
    /// A program was not accepted.
    #[error("cannot {operation} the program {program}")]
    Program { operation: &'static str, program: &'static str, source: Box<aya::programs::ProgramError> },
    /// A program could not be attached; another may be attached there in a way that leaves no room for
    /// others.
    #[error("cannot attach the program {program}")]
    Attach { program: &'static str, source: io::Error },
    /// The object lacks something it must have.
    #[error("the eBPF object has no {0}")]
    Missing(&'static str),
    /// A pinned map has another layout than this build: it was pinned by a build between versions.
    #[error("the pinned map {map} has {found} where this build has {expected}; detach the instance first")]
    Layout { map: &'static str, found: String, expected: String },
    /// A map operation failed.
    #[error("cannot {operation} {map}")]
    Map { operation: &'static str, map: &'static str, source: io::Error },
    /// A clock could not be read.
    #[error("cannot read the clock")]
    Clock(#[source] io::Error),
    /// The pod is not enrolled, or no more.
    #[error("network namespace {0} is not enrolled")]
    NotEnrolled(NetnsCookie),
    /// The name does not fit.
    #[error("the workload name {0:?} is longer than {max} bytes", max = crate::pods::LONGEST_NAME)]
    NameTooLong(String),
}
